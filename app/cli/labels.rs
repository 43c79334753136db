//! Options of `add` for labels and the category.

use clap::Args;
use url::form_urlencoded;

#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// Label of the torrents; may be repeated, or be a list with commas.
    #[arg(long = "label", value_name = "LABEL", value_delimiter = ',')]
    labels: Vec<String>,
    /// Category of the torrents. Its folder in the setting labels.categories, if it has one, is the default of
    /// --output.
    #[arg(long, value_name = "NAME")]
    category: Option<String>,
}

impl LabelArgs {
    /// Adds the options to the parameters of a request to the daemon.
    pub(super) fn write(&self, query: &mut form_urlencoded::Serializer<'_, String>) {
        for label in &self.labels {
            query.append_pair("label", label);
        }
        if let Some(category) = &self.category {
            query.append_pair("category", category);
        }
    }
}
