// A click on a message shows all that the same request did; a click elsewhere shows everything again.
document.querySelectorAll("svg.diagram").forEach(svg => svg.addEventListener("click", event => {
  const group = event.target.closest("g[data-r]");
  svg.querySelectorAll("g[data-r]").forEach(other =>
    other.classList.toggle("other", !!group && other.dataset.r !== group.dataset.r));
}));
document.querySelectorAll(".zoom").forEach(zoom => {
  const pictures = document.getElementById(zoom.dataset.for).querySelectorAll("svg");
  const sizes = [...pictures].map(svg => [svg.width.baseVal.value, svg.height.baseVal.value]);
  let scale = 1;
  [["-", 1 / 1.25], ["+", 1.25], ["1:1", 0]].forEach(([label, factor]) => {
    const button = document.createElement("button");
    button.textContent = label;
    button.addEventListener("click", () => {
      scale = factor ? scale * factor : 1;
      pictures.forEach((svg, at) => {
        svg.setAttribute("width", sizes[at][0] * scale);
        svg.setAttribute("height", sizes[at][1] * scale);
      });
    });
    zoom.append(button);
  });
});
