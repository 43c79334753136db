//! Log lines in whose scope a peer is have its address, as the field `peer`.

use syn::visit::{self, Visit};

use crate::log_lines::{LEVELS, Line, parse, sources_of};

/// Names of variables that are a peer: an entity, a component, or an address.
const PEERS: [&str; 4] = ["peer", "culprit", "remote", "endpoint"];

/// Lines in whose scope a peer is, and that are not about it: the file, the line's message, and the reason.
const NOT_ABOUT_PEERS: [(&str, &str, &str); 0] = [];

/// A walk over some code that knows the variables of each line's scope.
#[derive(Default)]
struct Walk {
    /// Whether each variable in scope is a peer.
    scope: Vec<bool>,
    /// The lines, and whether a peer is in their scope.
    lines: Vec<(Line, bool)>,
}

impl Walk {
    fn of(code: &str) -> Vec<(Line, bool)> {
        let mut walk = Self::default();
        walk.visit_file(&syn::parse_file(code).unwrap());
        walk.lines
    }

    /// Walks over something whose variables end with it.
    fn within(&mut self, inner: impl FnOnce(&mut Self)) {
        let before = self.scope.len();
        inner(self);
        self.scope.truncate(before);
    }
}

impl<'c> Visit<'c> for Walk {
    fn visit_item_fn(&mut self, function: &'c syn::ItemFn) {
        let outer = std::mem::take(&mut self.scope);
        visit::visit_item_fn(self, function);
        self.scope = outer;
    }

    fn visit_impl_item_fn(&mut self, function: &'c syn::ImplItemFn) {
        self.within(|walk| visit::visit_impl_item_fn(walk, function));
    }

    fn visit_block(&mut self, block: &'c syn::Block) {
        self.within(|walk| visit::visit_block(walk, block));
    }

    fn visit_local(&mut self, local: &'c syn::Local) {
        // The variables are known behind the statement.
        self.within(|walk| local.init.iter().for_each(|init| walk.visit_local_init(init)));
        self.visit_pat(&local.pat);
    }

    fn visit_arm(&mut self, arm: &'c syn::Arm) {
        self.within(|walk| visit::visit_arm(walk, arm));
    }

    fn visit_expr_if(&mut self, branch: &'c syn::ExprIf) {
        self.within(|walk| visit::visit_expr_if(walk, branch));
    }

    fn visit_expr_while(&mut self, expr: &'c syn::ExprWhile) {
        self.within(|walk| visit::visit_expr_while(walk, expr));
    }

    fn visit_expr_for_loop(&mut self, expr: &'c syn::ExprForLoop) {
        self.within(|walk| visit::visit_expr_for_loop(walk, expr));
    }

    fn visit_expr_closure(&mut self, closure: &'c syn::ExprClosure) {
        self.within(|walk| visit::visit_expr_closure(walk, closure));
    }

    fn visit_pat_ident(&mut self, variable: &'c syn::PatIdent) {
        self.scope.push(PEERS.iter().any(|peer| variable.ident == peer));
        visit::visit_pat_ident(self, variable);
    }

    fn visit_macro(&mut self, call: &'c syn::Macro) {
        let segments: Vec<String> = call
            .path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if let [path, level] = segments.as_slice()
            && path == "tracing"
            && LEVELS.contains(&level.as_str())
        {
            let line = parse("", call.tokens.clone());
            self.lines.push((line, self.scope.contains(&true)));
        }
    }
}

#[test]
fn lines_with_a_peer_in_scope_name_it() {
    let (mut count, mut faults) = (0, Vec::new());
    let files: Vec<_> = ["systems", "components"].into_iter().flat_map(sources_of).collect();
    for (file, code) in &files {
        for (Line { fields, message, .. }, has_peer) in Walk::of(code) {
            let is_listed = NOT_ABOUT_PEERS
                .iter()
                .any(|(path, text, _)| path == file && *text == message);
            if !has_peer || is_listed {
                continue;
            }
            count += 1;
            if !fields.iter().any(|field| field.name == "peer") {
                faults.push(format!("{file}: \"{message}\": no field `peer`"));
            }
        }
    }
    assert!(count >= 5, "only {count} lines have a peer in scope");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_peer_in_scope_is_found() {
    let code = "
        fn with(peer: &Peer) { if a { tracing::warn!(torrent = %x, \"param\"); } }
        fn without() {
            for PeerDisconnected { peer, .. } in gone.read() { tracing::debug!(\"loop\"); }
            if let Ok((mut peer, _)) = peers.get_mut(entity) { tracing::debug!(\"branch\"); }
            let count = peers.iter().filter(|peer| peer.is_snubbed).count();
            tracing::info!(count, \"none\");
            match peers.get(entity) { Ok(culprit) => tracing::warn!(\"arm\"), Err(_) => tracing::info!(\"none\") }
            let peer = tracing::info!(\"none\");
            tracing::info!(\"local\");
        }
        impl Blame<'_> { fn ban(&self, culprit: Culprit) { tracing::warn!(peer = %culprit.address, \"method\"); } }";
    for (line, has_peer) in Walk::of(code) {
        assert_eq!(has_peer, line.message != "none", "{}", line.message);
    }
    assert_eq!(Walk::of(code).len(), 9);
}
