//! The processes of a pod, where its node is this machine.

use std::fs;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::process::Command;

/// Sends a signal to every process in a pod's containers, and says whether there is one on this machine.
///
/// # Errors
/// When it cannot be sent.
pub async fn signal(pod: &Pod, signal: &str) -> Result<bool> {
    let processes = processes_of(pod)?;
    if processes.is_empty() {
        return Ok(false);
    }
    eprintln!("          SIG{signal} to the processes in pod {}", pod.name_any());
    let sent = Command::new("kill").arg(format!("-{signal}")).args(&processes).status().await;
    ensure!(sent.context("kill cannot be run")?.success(), "the processes {processes:?} did not get SIG{signal}");
    Ok(true)
}

/// Processes on this machine that run in a pod's containers.
pub fn processes_of(pod: &Pod) -> Result<Vec<String>> {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ids: Vec<&str> =
        statuses.filter_map(|status| status.container_id.as_deref()?.rsplit_once("//")).map(|(_, id)| id).collect();
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc cannot be read")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // A process may end while it is looked at.
        let Ok(groups) = fs::read_to_string(format!("/proc/{name}/cgroup")) else { continue };
        if name.parse::<u32>().is_ok() && ids.iter().any(|id| groups.contains(id)) {
            processes.push(name);
        }
    }
    Ok(processes)
}

/// Sends a signal to one process of this machine.
///
/// # Errors
/// When it cannot be sent.
pub async fn kill(process: u32, signal: &str) -> Result<()> {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(process.to_string()).status().await;
    ensure!(sent.context("kill cannot be run")?.success(), "process {process} did not get SIG{signal}");
    Ok(())
}
