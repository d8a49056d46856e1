//! What is printed of a namespace when its test has failed.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{Namespace, kubectl};

/// Prints objects, Events, logs of the pods, and what the operator said about the namespace.
pub async fn report(namespace: &Namespace) {
    let name = namespace.name.as_str();
    let everything =
        "anneal,all,configmaps,persistentvolumeclaims,horizontalpodautoscalers,poddisruptionbudgets,endpointslices";
    show(&["--namespace", name, "get", everything, "--output=wide"]).await;
    show(&["--namespace", name, "get", "trainingruns,modeldeployments", "--output=yaml"]).await;
    show(&["--namespace", name, "get", "events", "--sort-by=.metadata.creationTimestamp"]).await;
    for pod in namespace.list::<Pod>("").await.unwrap_or_default() {
        let pod = pod.name_any();
        show(&["--namespace", name, "get", "pod", &pod, "--output=jsonpath={.status}"]).await;
        show(&["--namespace", name, "logs", &pod, "--all-containers", "--tail=60"]).await;
        let previous = ["--namespace", name, "logs", &pod, "--all-containers", "--tail=60", "--previous"];
        if let Ok(said) = kubectl::run(&previous, None).await
            && said.success
        {
            eprintln!("\n$ {}\n{}", said.command, said.out);
        }
    }
    operator(namespace).await;
}

async fn show(args: &[&str]) {
    match kubectl::run(args, None).await {
        Ok(said) => eprintln!("\n$ {}\n{}{}", said.command, said.out, said.err),
        Err(problem) => eprintln!("\n{problem:#}"),
    }
}

/// The operator's lines about the namespace, and its warnings.
async fn operator(namespace: &Namespace) {
    let system = namespace.cluster.operator.namespace.as_str();
    show(&["--namespace", system, "get", "pods", "--output=wide"]).await;
    let chosen = "--selector=app.kubernetes.io/component=operator";
    let args = ["--namespace", system, "logs", chosen, "--prefix", "--since=10m", "--tail=-1"];
    let Ok(said) = kubectl::run(&args, None).await else { return };
    let matters = |line: &&str| {
        let about_us =
            line.contains(&format!("\"{}\"", namespace.name)) || line.contains(&format!("{}/", namespace.name));
        let anyone = !line.contains("\"namespace\"") && (line.contains("\"WARN\"") || line.contains("\"ERROR\""));
        about_us || anyone
    };
    eprintln!("\n$ {} (what it says about {})", said.command, namespace.name);
    said.out.lines().filter(matters).for_each(|line| eprintln!("{line}"));
}
