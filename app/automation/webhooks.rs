//! Webhooks: requests to web servers at events.

use std::time::Duration;

use ecs_torrent_engine::backends::http::builder;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, redirect};
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;
use url::Url;

use super::notices::Notice;
use super::settings::{AutomationSettings, Webhook};

/// Pauses before the second and the third attempt.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// Creates the client of all webhooks. It follows no redirection: a server cannot send requests elsewhere.
pub(super) fn client(limit: Duration) -> Result<Client, reqwest::Error> {
    builder().timeout(limit).redirect(redirect::Policy::none()).build()
}

/// Sends the notices to a server, one after the other, until the channel ends.
pub(super) async fn run(mut notices: Receiver<Notice>, webhook: Webhook, client: Client) {
    let shown = shown(&webhook.url);
    while let Some(notice) = notices.recv().await {
        if let Err(reason) = deliver(&client, &webhook, &notice).await {
            tracing::warn!(
                "webhook {shown}: {} {} was not delivered: {reason}",
                notice.event.name(),
                notice.info_hash
            );
        }
    }
}

/// Returns a URL without its user, query and path, which may hold secrets.
pub(super) fn shown(url: &str) -> String {
    Url::parse(url).map_or_else(|_| String::new(), |url| url.origin().ascii_serialization())
}

/// Returns settings without the parts of webhooks that could be secrets.
pub(super) fn without_secrets(settings: &AutomationSettings) -> AutomationSettings {
    let mut known = settings.clone();
    for webhook in &mut known.webhooks {
        webhook.url = shown(&webhook.url);
        webhook.token = webhook.token.take().map(|_| "…".to_owned());
    }
    known
}

async fn deliver(client: &Client, webhook: &Webhook, notice: &Notice) -> Result<(), String> {
    let body = serde_json::to_vec(notice).map_err(|error| error.to_string())?;
    let mut pauses = PAUSES.into_iter();
    loop {
        let mut request = client
            .post(&webhook.url)
            .header(CONTENT_TYPE, "application/json")
            .body(body.clone());
        if let Some(token) = &webhook.token {
            request = request.bearer_auth(token);
        }
        let reason = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) if is_final(answer.status()) => return Err(answer.status().to_string()),
            Ok(answer) => answer.status().to_string(),
            Err(error) => error.without_url().to_string(),
        };
        match pauses.next() {
            Some(pause) => sleep(pause).await,
            None => return Err(reason),
        }
    }
}

/// Whether another attempt would get the same answer.
fn is_final(status: StatusCode) -> bool {
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS && status != StatusCode::REQUEST_TIMEOUT
}
