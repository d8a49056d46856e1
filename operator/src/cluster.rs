//! Every word with the API server: each call under a timeout, each write idempotent.

use std::{fmt::Debug, future::Future, time::Duration};

use anneal_api::names::OPERATOR;
use hyper::header::{ACCEPT, HeaderValue};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    core::{PartialObjectMeta, Request, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// Longest time that one call may take. The client has no read timeout of its own, and retries 429 and 503 by itself.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A call to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No answer came in time.
    #[error("the API server did not answer {what} within {} s; it is tried again", TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        what: String,
    },
    /// The API server refused.
    #[error("{what}: {}", answer(source))]
    Api {
        /// What was asked.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// An object of that name is left of a resource that was deleted, and is being removed.
    #[error("{kind} {name} of a deleted namesake is still being removed; it goes on by itself")]
    Leaving {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
    },
    /// An object of that name exists and belongs to somebody else.
    #[error(
        "{kind} {name} already exists and does not belong to this {owner_kind}; delete or rename it, or rename the {owner_kind}"
    )]
    Foreign {
        /// Kind of the object.
        kind: String,
        /// Name of the object.
        name: String,
        /// Kind of the resource that wanted to own it.
        owner_kind: String,
    },
    /// A Service of that name exists, and its owner does not hand it over.
    #[error(
        "Service {name} already exists and does not belong to this ModelDeployment; annotate it with anneal.dev/take-over=true to have it taken over, delete or rename it, or rename the ModelDeployment"
    )]
    NotHandedOver {
        /// Name of the Service.
        name: String,
    },
}

/// The API server's own sentence, without the fields that repeat it.
fn answer(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl ClusterError {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "ApiServerTimeout",
            Self::Api { .. } => "ApiServerRefused",
            Self::Leaving { .. } => "NamesakeLeaving",
            Self::Foreign { .. } | Self::NotHandedOver { .. } => "NameTaken",
        }
    }

    /// Whether the user can mend it, so that it belongs into the status.
    pub fn is_users(&self) -> bool {
        match self {
            Self::Foreign { .. } | Self::NotHandedOver { .. } => true,
            Self::Api { .. } => self.says(Status::is_forbidden) || self.says(Status::is_invalid),
            Self::Timeout { .. } | Self::Leaving { .. } => false,
        }
    }

    /// Whether the API server's answer is of this kind.
    pub fn says(&self, is: impl Fn(&Status) -> bool) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(source.as_ref(), kube::Error::Api(status) if is(status)))
    }
}

/// What a namespaced Kubernetes type must be able to do here.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
}
impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize
{
}

async fn bounded<T>(what: String, call: impl Future<Output = kube::Result<T>>) -> Result<T, ClusterError> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ClusterError::Api { what, source: Box::new(source) }),
        Err(_) => Err(ClusterError::Timeout { what }),
    }
}

fn api<K: Object>(client: &Client, namespace: &str) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

fn what<K: Object>(verb: &str, name: &str) -> String {
    format!("{verb} {} {name}", K::kind(&()))
}

/// Reads an object; `None` where there is none of that name.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn get<K: Object>(client: &Client, namespace: &str, name: &str) -> Result<Option<K>, ClusterError> {
    bounded(what::<K>("get", name), api::<K>(client, namespace).get_opt(name)).await
}

/// The same of a kind that the cluster may lack; `None` where it does.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn get_if_served<K: Object>(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<Option<K>>, ClusterError> {
    // A list is never "not found" for want of an object.
    let params = ListParams::default().fields(&format!("metadata.name={name}"));
    match bounded(what::<K>("get", name), api::<K>(client, namespace).list(&params)).await {
        Ok(found) => Ok(Some(found.items.into_iter().next())),
        Err(problem) if problem.says(is_not_offered) => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// Whether this answers a list of a kind that the cluster does not know, in plain words, without the reason that an API server
/// gives for an object that is not there; or that the operator may not list, as where the chart was told to leave the right
/// out. An API server asks for the right first, so without it the two cannot be told apart.
pub fn is_not_offered(status: &Status) -> bool {
    matches!(status.code, 403 | 404)
}

/// Objects that come in one answer, where all of a namespace are asked for.
const PAGE: u32 = 100;

/// Lists the objects that carry the labels, or all of the namespace.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn list<K: Object>(client: &Client, namespace: &str, labels: &str) -> Result<Vec<K>, ClusterError> {
    // What carries labels is little, and comes out of the API server's cache; a page would be looked for in its storage.
    let limit = labels.is_empty().then_some(PAGE);
    let mut params = ListParams { limit, ..ListParams::default().labels(labels) };
    let mut all = Vec::new();
    loop {
        let page = bounded(what::<K>("list", labels), api::<K>(client, namespace).list(&params)).await?;
        all.extend(page.items);
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(all);
        }
    }
}

/// What the answer to a write is to hold: nobody needs to read again what was just said.
const METADATA: HeaderValue = HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Writes, and takes of the answer what the API server says about the object.
async fn write<K: Object>(
    client: &Client,
    request: Result<hyper::Request<Vec<u8>>, kube::core::request::Error>,
) -> kube::Result<ObjectMeta> {
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, METADATA);
    Ok(client.request::<PartialObjectMeta<K>>(request).await?.metadata)
}

fn requests<K: Object>(namespace: &str) -> Request {
    Request::new(K::url_path(&(), Some(namespace)))
}

fn body(object: &impl Serialize) -> kube::Result<Vec<u8>> {
    serde_json::to_vec(object).map_err(kube::Error::SerdeError)
}

/// Creates an object. One that exists already is fine where it has the same controller. Returns the metadata that it has.
///
/// # Errors
/// [`ClusterError::Foreign`] where the existing one belongs to somebody else; otherwise as [`get`].
pub async fn create<K: Object>(client: &Client, namespace: &str, object: &K) -> Result<ObjectMeta, ClusterError> {
    let name = object.name_any();
    let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
    let created = bounded(what::<K>("create", &name), async {
        write::<K>(client, requests::<K>(namespace).create(&params, body(object)?)).await
    });
    match created.await {
        Err(problem) if problem.says(Status::is_already_exists) => {
            let existing: Option<K> = get(client, namespace, &name).await?;
            match existing {
                Some(existing) if same_controller(&existing, object) => Ok(existing.meta().clone()),
                Some(existing) => Err(not_ours(&existing, object)),
                // Deleted between the two calls: the next reconcile creates it.
                None => Err(problem),
            }
        }
        other => other,
    }
}

/// Server-side apply of what the operator owns of an object. An existing one must have the same controller.
///
/// # Errors
/// [`ClusterError::Foreign`] where `existing` belongs to somebody else; otherwise as [`get`].
pub async fn apply<K: Object>(
    client: &Client,
    namespace: &str,
    object: &K,
    existing: Option<&K>,
) -> Result<K, ClusterError> {
    if let Some(existing) = existing.filter(|existing| !same_controller(*existing, object)) {
        return Err(not_ours(existing, object));
    }
    let name = object.name_any();
    let params = PatchParams::apply(OPERATOR).force();
    bounded(what::<K>("apply", &name), api::<K>(client, namespace).patch(&name, &params, &Patch::Apply(object))).await
}

/// A JSON merge patch of an object.
///
/// # Errors
/// When the API server does not answer or refuses; a `resourceVersion` in the patch makes it a precondition.
pub async fn merge<K: Object>(
    client: &Client,
    namespace: &str,
    name: &str,
    patch: &serde_json::Value,
) -> Result<K, ClusterError> {
    let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
    bounded(what::<K>("patch", name), api::<K>(client, namespace).patch(name, &params, &Patch::Merge(patch))).await
}

/// Sets the replicas of an object through its scale subresource.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn scale<K: Object>(client: &Client, namespace: &str, name: &str, replicas: i32) -> Result<(), ClusterError> {
    let patch = serde_json::json!({"spec": {"replicas": replicas}});
    let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
    let api = api::<K>(client, namespace);
    bounded(what::<K>("scale", name), api.patch_scale(name, &params, &Patch::Merge(&patch))).await.map(|_| ())
}

/// Deletes an object and, in the background, what it owns. One that is gone already is fine.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn delete<K: Object>(client: &Client, namespace: &str, object: &K) -> Result<(), ClusterError> {
    let name = object.name_any();
    let params = DeleteParams {
        // Of two objects of one name, only the one that was looked at.
        preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
        ..DeleteParams::background()
    };
    match bounded(what::<K>("delete", &name), api::<K>(client, namespace).delete(&name, &params)).await {
        Err(problem) if problem.says(Status::is_not_found) || problem.says(Status::is_conflict) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Replaces the status of a resource. The `resourceVersion` of what was observed is a precondition, so that a status
/// that was derived from an old spec is never written over a newer one. Returns the metadata that the resource has now.
///
/// # Errors
/// When the API server does not answer or refuses.
pub async fn write_status<K: Object, S: Serialize>(
    client: &Client,
    observed: &K,
    status: &S,
) -> Result<ObjectMeta, ClusterError> {
    let name = observed.name_any();
    let namespace = observed.namespace().unwrap_or_default();
    let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
    bounded(what::<K>("write status of", &name), async {
        // The API server keeps the specification that it has. Metadata that is missing would count as given up by its owners.
        let metadata = ObjectMeta { managed_fields: None, ..observed.meta().clone() };
        let (api_version, kind) = (K::api_version(&()), K::kind(&()));
        let object = body(&json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "status": status}))?;
        write::<K>(client, requests::<K>(&namespace).replace_subresource("status", &name, &params, object)).await
    })
    .await
}

/// Whether two objects name the same controller.
fn same_controller<K: Resource>(a: &K, b: &K) -> bool {
    let controller = |object: &K| {
        object
            .owner_references()
            .iter()
            .find(|reference| reference.controller == Some(true))
            .map(|reference| reference.uid.clone())
    };
    controller(a).is_some() && controller(a) == controller(b)
}

/// Why `existing` cannot take the place of `wanted`.
fn not_ours<K: Object>(existing: &K, wanted: &K) -> ClusterError {
    let owner = |object: &K| object.owner_references().iter().find(|owner| owner.controller == Some(true)).cloned();
    let (former, wanted_owner) = (owner(existing), owner(wanted));
    let (kind, name) = (K::kind(&()).into_owned(), wanted.name_any());
    let is_of_namesake = former.zip(wanted_owner.clone()).is_some_and(|(a, b)| a.kind == b.kind && a.name == b.name);
    if is_of_namesake || existing.meta().deletion_timestamp.is_some() {
        return ClusterError::Leaving { kind, name };
    }
    ClusterError::Foreign { kind, name, owner_kind: wanted_owner.map_or_else(|| "resource".to_owned(), |o| o.kind) }
}

/// Whether everything that `desired` says is so in `observed`, so that applying it would change nothing.
///
/// Objects are compared key by key; lists must have the same length. What the API server or others added is ignored.
pub fn says_the_same(desired: &impl Serialize, observed: &impl Serialize) -> bool {
    fn within(desired: &serde_json::Value, observed: &serde_json::Value) -> bool {
        use serde_json::Value::{Array, Null, Object};
        match (desired, observed) {
            (Null, _) => true,
            (Object(desired), Object(observed)) => {
                desired.iter().all(|(key, value)| within(value, observed.get(key).unwrap_or(&Null)))
            }
            (Array(desired), Array(observed)) => {
                desired.len() == observed.len() && desired.iter().zip(observed).all(|(a, b)| within(a, b))
            }
            (desired, observed) => desired == observed,
        }
    }
    match (serde_json::to_value(desired), serde_json::to_value(observed)) {
        (Ok(desired), Ok(observed)) => within(&desired, &observed),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use hyper::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn all_objects_of_a_namespace_come_in_pages_and_those_with_labels_at_once() {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let server = tower::service_fn({
            let asked = asked.clone();
            move |request: Request<Body>| {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let pages = [("limit=100&continue=second", "b", ""), ("limit=100", "a", "second"), ("", "c", "")];
                let page = pages.into_iter().find(|(params, ..)| query.ends_with(params));
                let (_, name, next) = page.expect("a page");
                asked.lock().expect("no panic").push(query);
                let item = json!({"metadata": {"name": name}});
                let page = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"continue": next}, "items": [item]});
                async move { Ok::<_, Infallible>(Response::new(Body::from(page.to_string().into_bytes()))) }
            }
        });
        let client = Client::new(server, "ml");
        let names = async |labels: &str| {
            let found: Vec<ConfigMap> = list(&client, "ml", labels).await.expect("a list");
            found.iter().map(ResourceExt::name_any).collect::<Vec<_>>()
        };
        assert_eq!(names("").await, ["a", "b"]);
        assert_eq!(names("a=b").await, ["c"]);
        assert_eq!(asked.lock().expect("no panic").len(), 3);
    }

    #[test]
    fn what_others_added_is_no_difference() {
        let desired = json!({"spec": {"ports": [{"port": 80}]}, "empty": null});
        assert!(says_the_same(&desired, &json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}, "status": {}})));
        assert!(!says_the_same(&desired, &json!({"spec": {"ports": [{"port": 81}]}})));
        assert!(!says_the_same(&desired, &json!({"spec": {"ports": [{"port": 80}, {"port": 81}]}})));
        assert!(!says_the_same(&desired, &json!({})));
    }
}
