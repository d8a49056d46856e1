//! Why a command could not do what it was asked to: one sentence that says what to do.

use kube::core::Status;

use crate::target::{Kind, Target};

/// Installs the operator of the plugin's version, or brings it to that version.
pub const INSTALL: &str = concat!(
    "helm upgrade --install anneal oci://ghcr.io/anneal-dev/charts/anneal --version ",
    env!("CARGO_PKG_VERSION"),
    " --namespace anneal-system --create-namespace"
);

/// Why a command could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is no usable kubeconfig.
    #[error("no kubeconfig can be used: {0}; set KUBECONFIG, or say --kubeconfig FILE and --context NAME")]
    Kubeconfig(String),
    /// Nobody answers.
    #[error(
        "the cluster at {server} gives no answer: {why}; `kubectl cluster-info` and `kubectl config current-context` tell more"
    )]
    Unreachable {
        /// Address of the API server.
        server: String,
        /// What went wrong.
        why: String,
    },
    /// The API server does not know who is asking.
    #[error(
        "the cluster at {server} does not know you: {why}; renew the credentials of the kubeconfig, or choose another --user or --context"
    )]
    Unauthorized {
        /// Address of the API server.
        server: String,
        /// What it says.
        why: String,
    },
    /// The user may not.
    #[error("you may not do that: {why}; ask for the role `edit` in the namespace, or `view` to look only")]
    Forbidden {
        /// What the API server says.
        why: String,
    },
    /// The custom resources are not defined.
    #[error(
        "the cluster at {server} does not know Anneal's resources; install the operator (`{install}`), or choose another --context",
        install = INSTALL
    )]
    NotInstalled {
        /// Address of the API server.
        server: String,
    },
    /// There is no such resource.
    #[error(
        "there is no {what} named {name} in namespace {namespace}; `kubectl anneal status --namespace {namespace}` lists what there is"
    )]
    NotFound {
        /// The kind, or `resource`.
        what: &'static str,
        /// The name.
        name: String,
        /// Where it was looked for.
        namespace: String,
    },
    /// Another kind than the command is for.
    #[error(
        "{name} is a {kind}, and this command is for a {}; `kubectl anneal status` lists what there is",
        words(wanted)
    )]
    WrongKind {
        /// The name.
        name: String,
        /// What it is.
        kind: Kind,
        /// What the command is for.
        wanted: Vec<Kind>,
    },
    /// Several resources have the name.
    #[error("more than one resource is named {name}; write {}", paths.join(" or "))]
    Ambiguous {
        /// The name.
        name: String,
        /// What to write.
        paths: Vec<String>,
    },
    /// The API server refused it for another reason.
    #[error("the API server refused it: {0}")]
    Refused(String),
    /// The answer has words that this version does not know.
    #[error(
        "the answer cannot be understood: {0}; the operator may be newer than this plugin (`kubectl anneal --version`)"
    )]
    Unknown(String),
    /// What was asked for makes no sense as things stand; the sentence says why and what does.
    #[error("{0}")]
    Pointless(String),
}

fn words(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" or a ")
}

impl Problem {
    /// There is no such resource.
    pub fn not_found(target: &Target, namespace: &str) -> Self {
        Self::NotFound {
            what: target.kind.map_or("resource", Kind::as_str),
            name: target.name.clone(),
            namespace: namespace.to_owned(),
        }
    }

    /// What an error of the client means to whoever asked.
    pub fn of(error: &kube::Error, server: &str) -> Self {
        let server = server.to_owned();
        match error {
            kube::Error::Api(status) => Self::of_status(status, server),
            kube::Error::SerdeError(error) => Self::Unknown(error.to_string()),
            kube::Error::Auth(error) => Self::Unauthorized { server, why: error.to_string() },
            other => Self::Unreachable { server, why: root(other) },
        }
    }

    fn of_status(status: &Status, server: String) -> Self {
        let why = status.message.trim().to_owned();
        match status.code {
            401 => Self::Unauthorized { server, why },
            403 => Self::Forbidden { why },
            // Without details nothing is known of the kind itself: an object that is not there has its name in them.
            404 if status.details.is_none() => Self::NotInstalled { server },
            _ => Self::Refused(why),
        }
    }

    /// Whether the user may not see it.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }
}

/// The innermost cause: the client's own words say only that sending failed.
fn root(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(status: serde_json::Value) -> String {
        let status: Status = serde_json::from_value(status).expect("a status");
        Problem::of(&kube::Error::Api(Box::new(status)), "https://cluster:6443").to_string()
    }

    #[test]
    fn what_the_api_server_says_becomes_a_sentence_that_says_what_to_do() {
        let forbidden = told(
            json!({"code": 403, "message": "modeldeployments.anneal.dev \"cats\" is forbidden: User \"eve\" cannot patch"}),
        );
        assert_eq!(
            forbidden,
            "you may not do that: modeldeployments.anneal.dev \"cats\" is forbidden: User \"eve\" cannot patch; \
             ask for the role `edit` in the namespace, or `view` to look only"
        );
        let unknown_kind = told(json!({"code": 404, "message": "404 page not found"}));
        assert!(unknown_kind.contains("does not know Anneal's resources; install the operator"), "{unknown_kind}");
        let stranger = told(json!({"code": 401, "message": "Unauthorized"}));
        assert!(stranger.contains("renew the credentials"), "{stranger}");
    }
}
