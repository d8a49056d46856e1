//! What `kubectl explain` says.

use anneal_api::resources::{definitions, element, kubernetes_type, schema_of};
use anneal_tests::{Namespace, Outcome, Result, bail, ensure, in_namespace};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

/// The paths of all that has fields of its own.
fn levels(path: &str, schema: &JSONSchemaProps, into: &mut Vec<String>) {
    for (name, field) in element(schema).properties.iter().flatten() {
        let path = format!("{path}.{name}");
        if element(field).properties.is_some() && kubernetes_type(&path).is_none() {
            levels(&path, field, into);
            into.push(path);
        }
    }
}

async fn explained(ns: &Namespace, path: String) -> Result<()> {
    let said = ns.kubectl(&["explain", &path]).await?.ok()?.out;
    let Some((_, words)) = said.split_once("DESCRIPTION:") else { bail!("{path} has no description:\n{said}") };
    let Some((words, fields)) = words.split_once("FIELDS:") else { bail!("{path} has no fields:\n{said}") };
    ensure!(words.split_whitespace().count() > 2 && !words.contains("<empty>"), "{path} is described as {words:?}");
    ensure!(!fields.trim().is_empty(), "{path} lists no field");
    Ok(())
}

#[tokio::test]
async fn kubectl_explains_every_level_of_every_kind() -> Outcome {
    in_namespace(async |ns| {
        let mut all = Vec::new();
        for definition in definitions() {
            let kind = definition.spec.names.singular.clone().unwrap_or_default();
            levels(&kind, schema_of(&definition).expect("a schema"), &mut all);
        }
        ensure!(all.iter().any(|path| path == "trainingrun.spec.podTemplate.resources"), "levels are missing: {all:?}");
        stream::iter(all).map(|path| explained(ns, path)).buffer_unordered(4).try_collect().await
    })
    .await
}
