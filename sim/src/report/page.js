// A click on a message shows all that the same request did; a click elsewhere shows everything again.
document.querySelectorAll("svg.diagram").forEach(svg => svg.addEventListener("click", event => {
  const group = event.target.closest("g[data-r]");
  svg.querySelectorAll("g[data-r]").forEach(other =>
    other.classList.toggle("other", !!group && other.dataset.r !== group.dataset.r));
}));
document.querySelectorAll(".zoom").forEach(zoom => {
  const pictures = document.getElementById(zoom.dataset.for).querySelectorAll(".wide > svg");
  const sizes = [...pictures].map(svg => [+svg.getAttribute("width"), +svg.getAttribute("height")]);
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
// Beside the parts of a diagram, a step to the one before and the one after, with the arrow keys as well.
document.querySelectorAll(".steps").forEach(nav => {
  const parts = [...nav.parentElement.querySelectorAll(":scope > input")];
  const step = by => {
    const to = parts[parts.findIndex(part => part.checked) + by];
    if (to) { to.checked = true; nav.parentElement.querySelector(".scroll").scrollTop = 0; }
  };
  [["\u2190 earlier", -1], ["later \u2192", 1]].forEach(([label, by]) => {
    const button = document.createElement("button");
    button.textContent = label;
    button.addEventListener("click", () => step(by));
    nav.append(button);
  });
  document.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && nav.offsetParent && event.target === document.body) step(by);
  });
});
