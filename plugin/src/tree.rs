//! The tree of a resource and what was made for it, drawn as a table whose first column branches.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    age,
    paint::{Paint, padded, table},
    state::State,
};

/// A thing with the things that were made for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: &'static str,
    /// How it is.
    #[serde(flatten)]
    pub state: State,
    /// Since when it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What else there is to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub info: String,
    /// What was made for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Node>,
}

/// The lines of a tree.
pub fn draw(root: &Node, now: Timestamp, paint: Paint) -> Vec<String> {
    let mut rows = Vec::new();
    walk(root, "", "", now, paint, &mut rows);
    table(paint, ["NAME", "KIND", "STATUS", "AGE", "INFO"], &rows)
}

fn walk(node: &Node, own: &str, below: &str, now: Timestamp, paint: Paint, rows: &mut Vec<[String; 5]>) {
    let state = format!("{} {}", node.state.tone.sign(), node.state.word);
    rows.push([
        format!("{}{}", paint.dim(own), node.name),
        node.kind.to_owned(),
        paint.tone(node.state.tone, &state),
        node.since.map_or_else(|| "-".to_owned(), |since| age::between(since, now)),
        // A message may have lines of its own; the tree has one for each thing.
        node.info.split_whitespace().collect::<Vec<_>>().join(" "),
    ]);
    for (i, child) in node.children.iter().enumerate() {
        let is_last = i + 1 == node.children.len();
        let (branch, trunk) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        walk(child, &format!("{below}{branch}"), &format!("{below}{trunk}"), now, paint, rows);
    }
}

/// Labels with what belongs to them, one a line; what has nothing to say is left out.
pub fn facts(facts: &[(&str, String)], paint: Paint) -> Vec<String> {
    let told: Vec<_> = facts.iter().filter(|(_, text)| !text.is_empty()).collect();
    let width = told.iter().map(|(label, _)| label.len() + 1).max().unwrap_or(0);
    told.iter().map(|(label, text)| format!("{}  {text}", paint.bold(&padded(&format!("{label}:"), width)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Tone;

    fn node(name: &str, info: &str, children: Vec<Node>) -> Node {
        let since = Some(Timestamp::from_second(60).expect("in range"));
        Node {
            name: name.to_owned(),
            kind: "Pod",
            state: State::new(Tone::Good, "Ready"),
            since,
            info: info.to_owned(),
            children,
        }
    }

    #[test]
    fn a_tree_branches_and_its_columns_are_aligned() {
        let leaf = node("c", "", vec![]);
        let root = node("root", "top", vec![node("a", "two\n lines", vec![leaf.clone()]), node("b", "", vec![leaf])]);
        let lines = draw(&root, Timestamp::from_second(100).expect("in range"), Paint::PLAIN);
        assert_eq!(
            lines,
            [
                "NAME     KIND  STATUS   AGE  INFO",
                "root     Pod   ✔ Ready  40s  top",
                "├─ a     Pod   ✔ Ready  40s  two lines",
                "│  └─ c  Pod   ✔ Ready  40s",
                "└─ b     Pod   ✔ Ready  40s",
                "   └─ c  Pod   ✔ Ready  40s",
            ]
        );
    }

    #[test]
    fn facts_are_aligned_and_empty_ones_left_out() {
        let lines = facts(
            &[("Name", "cats".to_owned()), ("Empty", String::new()), ("Namespace", "demo".to_owned())],
            Paint::PLAIN,
        );
        assert_eq!(lines, ["Name:       cats", "Namespace:  demo"]);
    }
}
