//! `cogo tree`: the supervision tree of the running fleet.

use std::time::Duration;

use clap::Args;

use crate::{
    command::outside::hang_into,
    context::Context,
    failure::Failure,
    fleet::{Floor, Request, TreeNode, ask, told},
    format,
    output::{Look, Output, table},
};

/// The picture is drawn at once, or the `cogo up` hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Show the supervision tree: domains, processes, instances, how they are and how they last ended, and the agents of
/// level 3 below the instance that answers for them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cogo tree\n  cogo tree --watch\n  cogo tree --json | jq '.children[].name'")]
pub(crate) struct Tree {
    /// Show it again every second until interrupted; with --json one object per line.
    #[arg(long)]
    watch: bool,
}

impl Tree {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        if !self.watch {
            return show(context).await;
        }
        let watching = async {
            loop {
                if !context.output.is_json() {
                    context.output.clear_screen()?;
                }
                show(context).await?;
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            outcome = watching => outcome,
            // the usual way to end it
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    }
}

async fn show(context: &Context) -> Result<(), Failure> {
    let mut tree: TreeNode = ask(&context.home, &Request::Tree {}, ANSWER_WITHIN).await?;
    hang_into(context, &mut tree).await;
    context.output.either(&tree, || readable(&context.output, &tree))
}

fn readable(output: &Output, tree: &TreeNode) -> String {
    let mut rows = Vec::new();
    add_rows(tree, "", "", &mut rows);
    let looks: Vec<Option<Look>> = rows.iter().map(|(_, look)| *look).collect();
    let text = table(["agent", "state", ">pid", ">restarts", ">up", "last exit"], rows.into_iter().map(|(row, _)| row));
    let lines = text.lines().zip([None].into_iter().chain(looks)).map(|(line, look)| match look {
        Some(look) => output.paint.paint(look, line),
        None => line.to_owned(),
    });
    let mut orders = Vec::new();
    add_orders(tree, &mut orders);
    lines
        .chain(orders.into_iter().map(|order| output.paint.paint(Look::Warning, &order)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// What was ordered, in the order of the tree, behind an empty line.
fn add_orders(node: &TreeNode, lines: &mut Vec<String>) {
    if let Some(order) = &node.order {
        let gap = if lines.is_empty() { "\n" } else { "" };
        lines.push(format!("{gap}{}", told(order)));
    }
    node.children.iter().for_each(|child| add_orders(child, lines));
}

/// One line for each node; a process with its only instance is one line.
fn add_rows(node: &TreeNode, own: &str, below: &str, rows: &mut Vec<([String; 6], Option<Look>)>) {
    if let (Floor::Process, [only]) = (node.kind, node.children.as_slice())
        && node.state == "running"
    {
        rows.push(row(only, &format!("{own}{}/{}", node.name, only.name)));
        return add_rows_below(only, below, rows);
    }
    let name = if node.kind == Floor::Root { "fleet".to_owned() } else { format!("{own}{}", node.name) };
    rows.push(row(node, &name));
    add_rows_below(node, below, rows);
}

fn add_rows_below(node: &TreeNode, below: &str, rows: &mut Vec<([String; 6], Option<Look>)>) {
    let last = node.children.len().saturating_sub(1);
    for (index, child) in node.children.iter().enumerate() {
        let (branch, trunk) = if index == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        add_rows(child, &format!("{below}{branch}"), &format!("{below}{trunk}"), rows);
    }
}

fn row(node: &TreeNode, name: &str) -> ([String; 6], Option<Look>) {
    let look = match node.state.as_str() {
        "running" | "active" => None,
        "stopped" if node.drained => Some(Look::Warning),
        "stopped" => Some(Look::Bad),
        _ => Some(Look::Warning),
    };
    let milliseconds = |seconds: f64| format::milliseconds(seconds * 1000.0);
    let cells = [
        name.to_owned(),
        // told from one that ended for good
        if node.drained && node.state == "stopped" { "drained".to_owned() } else { node.state.clone() },
        node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        node.restarts.to_string(),
        node.uptime_s.map_or_else(|| "-".to_owned(), milliseconds),
        node.last_exit.as_ref().map_or_else(String::new, |last| {
            format!("{}, {} ago", format::shortened(&last.reason, 60), milliseconds(last.ago_s))
        }),
    ];
    (cells, look)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::TreeExit;

    fn node(name: &str, kind: Floor, children: Vec<TreeNode>) -> TreeNode {
        TreeNode {
            name: name.to_owned(),
            path: name.to_owned(),
            kind,
            state: "running".to_owned(),
            state_for_s: 3.0,
            strategy: None,
            pid: None,
            url: None,
            restarts: 0,
            uptime_s: Some(3.0),
            last_exit: None,
            dynamic: false,
            drained: false,
            order: None,
            children,
        }
    }

    #[test]
    fn branches_line_up_and_single_instances_share_a_line() {
        let last_exit = TreeExit { kind: "abnormal".to_owned(), reason: "signal 9".to_owned(), ago_s: 0.5 };
        let dead = TreeNode {
            state: "restarting".to_owned(),
            uptime_s: None,
            restarts: 2,
            last_exit: Some(last_exit),
            ..node("1", Floor::Instance, Vec::new())
        };
        let living = TreeNode { pid: Some(42), ..node("0", Floor::Instance, Vec::new()) };
        let domains = vec![
            node("bus", Floor::Domain, vec![node("bus-reclaimer", Floor::Process, vec![living.clone()])]),
            node("rag", Floor::Domain, vec![node("rag-embed", Floor::Process, vec![living, dead])]),
        ];
        let text = readable(&Output::new(false), &node("", Floor::Root, domains));
        let expected = "\
AGENT                  STATE       PID  RESTARTS      UP  LAST EXIT
fleet                  running       -         0  3.00 s
├─ bus                 running       -         0  3.00 s
│  └─ bus-reclaimer/0  running      42         0  3.00 s
└─ rag                 running       -         0  3.00 s
   └─ rag-embed        running       -         0  3.00 s
      ├─ 0             running      42         0  3.00 s
      └─ 1             restarting    -         2       -  signal 9, 500 ms ago";
        assert_eq!(text, expected);
    }
}
