//! HTTP through reqwest, with limits on what untrusted servers can do to the engine.

#[cfg(test)]
mod tests;

use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bevy_platform::collections::HashMap;
use ecs_torrent_components::scope::Scope;
use ecs_torrent_protocol::compact::Family;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use reqwest::{Client, ClientBuilder, Response, Url, redirect};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::SharedRuntime;
use super::sink::Sink;
use crate::port::{Backend, JobTag};
use crate::ports::http::{ContentRange, HttpError, HttpEvent, HttpGet, HttpPart, HttpRequest, LocalPaths};
use crate::ports::net::LocalAddresses;
use crate::wake::Waker;

/// Maximum number of redirects followed.
pub const MAX_REDIRECTS: usize = 5;

/// The `User-Agent` header.
const USER_AGENT: &str = concat!("ecs-torrent/", env!("CARGO_PKG_VERSION"));

/// The Http port's real backend.
pub struct ReqwestHttp {
    clients: Arc<Clients>,
    runtime: Arc<SharedRuntime>,
    sink: Sink<HttpEvent>,
    flows: Arc<Mutex<HashMap<JobTag, Arc<Flow>>>>,
}

impl ReqwestHttp {
    pub(crate) fn new(local: &LocalAddresses, runtime: Arc<SharedRuntime>, waker: &Waker) -> Self {
        let sources = local
            .0
            .iter()
            .map(SocketAddr::ip)
            .filter(|ip| !ip.is_unspecified())
            .collect();
        let clients = Clients {
            sources,
            built: Mutex::default(),
        };
        Self {
            clients: Arc::new(clients),
            runtime,
            sink: Sink::new(waker),
            flows: Arc::default(),
        }
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<JobTag, Arc<Flow>>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, request: HttpGet) {
        let tag = request.tag;
        let flow = Arc::new(Flow {
            sink: self.sink.clone(),
            tag,
            credit: AtomicI64::new(i64::try_from(request.credit).unwrap_or(i64::MAX)),
            changed: Notify::new(),
            is_canceled: AtomicBool::new(false),
        });
        self.flows().insert(tag, flow.clone());
        let (clients, flows) = (self.clients.clone(), self.flows.clone());
        self.runtime.handle().spawn(async move {
            tokio::select! {
                result = get(&clients, request, &flow) => flow.push(HttpPart::End(result)),
                () = flow.canceled() => {}
            }
            let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
            if flows.get(&tag).is_some_and(|known| Arc::ptr_eq(known, &flow)) {
                flows.remove(&tag);
            }
        });
    }
}

/// A request that is carried out: the world's credit for its response.
struct Flow {
    sink: Sink<HttpEvent>,
    tag: JobTag,
    credit: AtomicI64,
    changed: Notify,
    is_canceled: AtomicBool,
}

impl Flow {
    /// Delivers a part, unless the request is canceled.
    fn push(&self, part: HttpPart) {
        let tag = self.tag;
        self.sink.change(|events| {
            if !self.is_canceled.load(Ordering::Relaxed) {
                events.push(HttpEvent { tag, part });
            }
        });
    }

    fn grant(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let add = |credit: i64| Some(credit.saturating_add(bytes));
        let _ = self.credit.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        self.changed.notify_waiters();
    }

    /// Cancels the request and takes back the parts that the world has not taken.
    fn cancel(&self) {
        self.sink.change(|events| {
            self.is_canceled.store(true, Ordering::Relaxed);
            events.retain(|event| event.tag != self.tag);
        });
        self.changed.notify_waiters();
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    async fn canceled(&self) {
        self.until(|| self.is_canceled.load(Ordering::Relaxed)).await;
    }

    async fn has_credit(&self) {
        self.until(|| self.credit.load(Ordering::Acquire) > 0).await;
    }
}

/// The time that is left for a response.
struct Patience(Duration);

impl Patience {
    /// Waits for the server, at most for the time that is left.
    async fn wait<T>(&mut self, work: impl Future<Output = Result<T, HttpError>>) -> Result<T, HttpError> {
        let begin = Instant::now();
        let result = timeout(self.0, work).await;
        self.0 = self.0.saturating_sub(begin.elapsed());
        result.unwrap_or(Err(HttpError::Timeout))
    }
}

impl Backend<HttpRequest, HttpEvent> for ReqwestHttp {
    fn submit(&mut self, requests: &mut Vec<HttpRequest>) {
        for request in requests.drain(..) {
            match request {
                HttpRequest::Get(request) => self.get(request),
                HttpRequest::Grant { tag, bytes } => {
                    if let Some(flow) = self.flows().get(&tag) {
                        flow.grant(bytes);
                    }
                }
                HttpRequest::Cancel { tag } => {
                    if let Some(flow) = self.flows().remove(&tag) {
                        flow.cancel();
                    }
                }
            }
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<HttpEvent>) -> bool {
        self.sink.poll(max, events)
    }
}

async fn get(clients: &Clients, request: HttpGet, flow: &Flow) -> Result<(), HttpError> {
    let mut patience = Patience(request.timeout);
    let response = patience.wait(send(clients, &request)).await?;
    let content = response.headers().get(CONTENT_RANGE);
    flow.push(HttpPart::Head {
        status: response.status().as_u16(),
        server: response.remote_addr().map(|address| address.ip()),
        content: content.and_then(|value| ContentRange::parse(value.to_str().ok()?)),
    });
    read_body(response, request.max_body_bytes, patience, flow).await
}

async fn send(clients: &Clients, request: &HttpGet) -> Result<Response, HttpError> {
    let url = Url::parse(&request.url).map_err(|_| HttpError::BadUrl)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(HttpError::BadUrl);
    }
    let scope = scope_of_url(&url, request.family).await?;
    if scope != Scope::Global && !request.local_paths.allow(url.path()) {
        return Err(HttpError::LocalPath);
    }
    let client = clients.get(request.family, scope, request.local_paths)?;
    let mut getting = client.get(url);
    if let Some(range) = request.range.as_ref().filter(|range| !range.is_empty()) {
        // The range is of the resource as it is, so the answer must not be compressed.
        getting = getting
            .header(RANGE, format!("bytes={}-{}", range.start, range.end - 1))
            .header(ACCEPT_ENCODING, "identity");
    }
    getting.send().await.map_err(|error| explain(&error))
}

/// Reads the body while there is credit. Fault 50: counts the bytes after decompression, so that a small response
/// cannot become a large one.
async fn read_body(mut response: Response, max: usize, mut patience: Patience, flow: &Flow) -> Result<(), HttpError> {
    let mut total = 0usize;
    loop {
        flow.has_credit().await;
        let chunk = async { response.chunk().await.map_err(|error| explain(&error)) };
        let Some(chunk) = patience.wait(chunk).await? else {
            return Ok(());
        };
        total = total.saturating_add(chunk.len());
        if total > max {
            return Err(HttpError::TooLarge(max));
        }
        flow.credit.fetch_sub(chunk.len() as i64, Ordering::AcqRel);
        flow.push(HttpPart::Chunk(chunk));
    }
}

/// Returns how private a URL's network is. No redirect may lead into a more private one.
async fn scope_of_url(url: &Url, family: Option<Family>) -> Result<Scope, HttpError> {
    let addresses: Vec<IpAddr> = match url.host().ok_or(HttpError::BadUrl)? {
        url::Host::Ipv4(ip) => vec![ip.into()],
        url::Host::Ipv6(ip) => vec![ip.into()],
        url::Host::Domain(name) => {
            let found = tokio::net::lookup_host((name, 0)).await;
            found
                .map_err(|error| HttpError::Transport(error.to_string().into()))?
                .map(|address| address.ip())
                .collect()
        }
    };
    let usable = addresses.into_iter().filter(|ip| is_of(family, *ip)).map(Scope::of);
    // The most public of the addresses. The connection is then limited to its scope.
    usable.max().ok_or(HttpError::NoAddress)
}

fn is_of(family: Option<Family>, ip: IpAddr) -> bool {
    family.is_none_or(|family| family == Family::of(ip))
}

/// HTTP clients by the networks they may reach, built when first needed.
struct Clients {
    sources: Vec<IpAddr>,
    built: Mutex<HashMap<(Option<Family>, Scope, LocalPaths), Client>>,
}

impl Clients {
    fn get(&self, family: Option<Family>, scope: Scope, local_paths: LocalPaths) -> Result<Client, HttpError> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (family, scope, local_paths);
        if let Some(client) = built.get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(family, scope, local_paths);
        let client = client.map_err(|error| explain(&error))?;
        built.insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, family: Option<Family>, scope: Scope, local_paths: LocalPaths) -> reqwest::Result<Client> {
        let source = family.and_then(|family| self.sources.iter().find(|ip| is_of(Some(family), **ip)).copied());
        builder()
            .local_address(source)
            .dns_resolver(Arc::new(GuardedResolver(move |ip| match () {
                () if !is_of(family, ip) => Ok(false),
                () if !scope.may_reach(ip) => Err(HttpError::PrivateRedirect),
                () => Ok(true),
            })))
            .redirect(redirect::Policy::custom(move |attempt| {
                follow(attempt, scope, local_paths)
            }))
            .build()
    }
}

/// Begins a client as this program has them: with its name, and without a proxy from the environment, which could reach
/// networks that we must not.
pub fn builder() -> ClientBuilder {
    Client::builder()
        .user_agent(USER_AGENT)
        .no_proxy()
        .use_preconfigured_tls(tls())
}

/// Trusts the system's and Mozilla's root certificates: some machines have none of their own.
fn tls() -> ClientConfig {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default TLS versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Follows or refuses a redirect. Fault 51: an IP address in the URL never reaches the resolver, so it is checked
/// here. A name may stand for any address that `scope` may reach, so the paths of local servers count if that may be a
/// local one.
fn follow(attempt: redirect::Attempt<'_>, scope: Scope, local_paths: LocalPaths) -> redirect::Action {
    let literal = literal_address(attempt.url());
    if literal.is_some_and(|ip| !scope.may_reach(ip)) {
        attempt.error(HttpError::PrivateRedirect)
    } else if scope != Scope::Global
        && literal.is_none_or(|ip| Scope::of(ip) != Scope::Global)
        && !local_paths.allow(attempt.url().path())
    {
        attempt.error(HttpError::LocalPath)
    } else if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error(HttpError::TooManyRedirects)
    } else {
        attempt.follow()
    }
}

/// Returns the host of a URL if it is an address. Such a host never reaches the resolver.
#[must_use]
pub fn literal_address(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        url::Host::Ipv4(ip) => Some(ip.into()),
        url::Host::Ipv6(ip) => Some(ip.into()),
        url::Host::Domain(_) => None,
    }
}

/// Resolves names to the addresses that a rule accepts. The rule refuses an address with an error, which is the result
/// if no address is accepted, or skips it.
pub struct GuardedResolver<F>(pub F);

impl<F, E> Resolve for GuardedResolver<F>
where
    F: Fn(IpAddr) -> Result<bool, E> + Clone + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    fn resolve(&self, name: Name) -> Resolving {
        let rule = self.0.clone();
        Box::pin(async move {
            let (mut accepted, mut refusal) = (Vec::new(), None);
            for address in tokio::net::lookup_host((name.as_str(), 0)).await? {
                match rule(address.ip()) {
                    Ok(true) => accepted.push(address),
                    Ok(false) => {}
                    Err(error) => refusal = Some(error),
                }
            }
            match refusal {
                Some(error) if accepted.is_empty() => Err(error.into()),
                _ => Ok(Box::new(accepted.into_iter()) as Addrs),
            }
        })
    }
}

/// Extracts the innermost cause of an error, which is the specific one, without the URL.
fn explain(error: &reqwest::Error) -> HttpError {
    let mut cause = error.source();
    let mut text = None;
    while let Some(inner) = cause {
        if let Some(ours) = inner.downcast_ref::<HttpError>() {
            return ours.clone();
        }
        text = Some(inner.to_string());
        cause = inner.source();
    }
    if error.is_timeout() {
        return HttpError::Timeout;
    }
    HttpError::Transport(text.unwrap_or_else(|| "request failed".to_owned()).into())
}
