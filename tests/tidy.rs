//! Habits that matter, as tests: what a compiler or a lint does not see.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the code of the nodes, the client and the simulator stands.
const SHIPPED_AND_SIMULATED: &[&str] =
    &["client/src", "client/transport/src", "client/wire/src", "node/core/src", "node/src", "sim/src"];

/// What a path of the project begins with when a document names it.
const FOLDERS: &[&str] = &["client/", "docs/", "node/", "scripts/", "sim/", "tests/"];

/// Every Rust file below some folders of the project, with its text.
fn sources(folders: &[&str]) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        let mut entries: Vec<_> =
            fs::read_dir(folder).expect("is a folder").map(|entry| entry.expect("is readable").path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("is text");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        walk(&root().join(folder), &mut found);
    }
    assert!(!found.is_empty(), "there is code in {folders:?}");
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package stands in the project").to_owned()
}

/// The lines in which a forbidden word stands outside of comments, as `path:line: text`.
fn lines_with(files: &[(PathBuf, String)], words: &[&str], allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| !allowed.iter().any(|allowed| path.ends_with(allowed))) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn the_core_knows_nothing_of_the_world_outside() {
    let words =
        ["tokio", "quinn", "sled", "std::net::Udp", "std::thread", "std::fs", "SystemTime", "Instant::now", "rand::"];
    let found = lines_with(&sources(&["node/core/src"]), &words, &[]);
    assert!(found.is_empty(), "the core is pure:\n{}", found.join("\n"));
}

#[test]
fn no_map_order_is_left_to_chance() {
    let found =
        lines_with(&sources(SHIPPED_AND_SIMULATED), &["HashMap", "HashSet", "RandomState"], &["sim/src/interpose.rs"]);
    assert!(found.is_empty(), "their order differs from run to run, use BTreeMap or BTreeSet:\n{}", found.join("\n"));
}

#[test]
fn every_select_is_biased() {
    for (path, text) in sources(SHIPPED_AND_SIMULATED) {
        for (at, _) in text.match_indices("select! {") {
            let body = text[at..].split_once('{').expect("matched").1.trim_start();
            let line = text[..at].lines().count();
            assert!(
                body.starts_with("biased;"),
                "{}:{line}: an unbiased select! differs from run to run",
                path.display()
            );
        }
    }
}

#[test]
fn unsafe_code_stands_in_one_file() {
    let words = ["unsafe {", "unsafe fn", "unsafe extern", "allow(unsafe_code)", "expect(unsafe_code"];
    let found =
        lines_with(&sources(&["client", "node", "sim", "tests"]), &words, &["sim/src/interpose.rs", "tests/tidy.rs"]);
    assert!(found.is_empty(), "only the simulator's interposition may be unsafe:\n{}", found.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for (path, text) in sources(&["client", "node", "sim", "tests"]) {
        let begins = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        let said = begins.starts_with("//!") || path.components().any(|part| part.as_os_str() == "fuzz");
        assert!(said, "{} does not begin with a module comment", path.display());
    }
}

#[test]
fn the_readme_names_what_is_there() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).expect("is there");
        let words = text.split(|c: char| c.is_whitespace() || "`()[],".contains(c));
        let paths: Vec<&str> = words
            .map(|word| word.trim_end_matches(['.', ':', ';']))
            .filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)))
            .collect();
        assert!(!paths.is_empty(), "{document} names no path");
        for path in paths {
            assert!(root().join(path).exists(), "{document} names {path}, which is not there");
        }
    }
    let readme = fs::read_to_string(root().join("README.md")).expect("is there");
    let scripts = fs::read_dir(root().join("scripts")).expect("is a folder");
    for script in scripts.map(|entry| entry.expect("is readable").file_name()) {
        let name = script.to_string_lossy();
        assert!(readme.contains(name.as_ref()), "README.md does not name scripts/{name}");
    }
}

/// In these documents a name like `run()` is a function of the source file that is named before it.
#[test]
fn the_documents_name_functions_that_are_there() {
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).expect("is there");
        let (mut source, mut functions) = (None::<(&str, String)>, 0);
        // What stands between backticks is every second piece, also around blocks of code, which have three of them at each end.
        for code in text.split('`').skip(1).step_by(2) {
            if code.contains('/') && code.ends_with(".rs") {
                let read = fs::read_to_string(root().join(code));
                source = Some((code, read.unwrap_or_else(|error| panic!("{document} names {code}: {error}"))));
            } else if let Some(name) = code.strip_suffix("()") {
                let Some((path, source)) = &source else { panic!("{document} names {code} before any source file") };
                let is_there = source.contains(&format!("fn {name}(")) || source.contains(&format!("fn {name}<"));
                assert!(is_there, "{document} names {code}, which is not in {path}");
                functions += 1;
            }
        }
        assert!(functions > 0, "{document} names no function");
    }
}
