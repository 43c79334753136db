//! `label`: the labels and the category of a torrent.

use clap::Args;
use serde_json::{Value, json};

use super::connection::Daemon;
use super::values::text;
use super::{DaemonAddress, print_json};
use crate::cli::output::printable;
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
A torrent has any number of labels and at most one category. `list --label` and
`list --category` select by them. A category with a folder in the setting
labels.categories places the torrents that are added with it; a torrent that is
there already stays where it is. Without options, the command prints both.

Examples:
  ecs-torrent label 0c1f3b --add linux,iso --category distributions
  ecs-torrent label 0c1f3b --remove iso
  ecs-torrent label 0c1f3b --set seeding --no-category
  ecs-torrent config set labels.categories '[{\"name\": \"tv\", \"folder\": \"tv\"}]'")]
pub(in crate::cli) struct LabelArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    hash: String,
    /// Labels that the torrent gets.
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    add: Vec<String>,
    /// Labels that the torrent loses.
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    remove: Vec<String>,
    /// Labels that replace all of the torrent's; an empty list removes all.
    #[arg(long, value_name = "LABELS", value_delimiter = ',', conflicts_with_all = ["add", "remove"])]
    set: Option<Vec<String>>,
    /// Category of the torrent.
    #[arg(long, value_name = "NAME", conflicts_with = "no_category")]
    category: Option<String>,
    /// Remove the category.
    #[arg(long)]
    no_category: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

impl LabelArgs {
    /// Returns the change for the daemon; an empty object changes nothing.
    fn change(&self) -> Value {
        let mut change = json!({});
        if let Some(labels) = &self.set {
            change["labels"] = labels.iter().filter(|label| !label.is_empty()).cloned().collect();
        } else if !self.add.is_empty() || !self.remove.is_empty() {
            change["labels"] = json!({"add": self.add, "remove": self.remove});
        }
        match &self.category {
            Some(category) => change["category"] = category.as_str().into(),
            None if self.no_category => change["category"] = Value::Null,
            None => {}
        }
        change
    }
}

pub(in crate::cli) async fn run(args: LabelArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let hash = daemon.resolve_running(&args.hash).await?;
    let path = format!("/api/v1/torrents/{hash}");
    let change = args.change();
    if change != json!({}) {
        daemon.patch(&path, &change).await?;
    }
    let stats = daemon.get(&format!("{path}?fields=labels,category")).await?;
    if args.json {
        print_json(&stats);
        return Ok(Outcome::Done);
    }
    let labels: Vec<String> = stats["labels"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .map(printable)
        .collect();
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    say!("labels: {}", or_none(labels.join(", ")));
    say!(
        "category: {}",
        or_none(printable(stats["category"].as_str().unwrap_or_default()))
    );
    Ok(Outcome::Done)
}
