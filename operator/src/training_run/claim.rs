//! The claims that a run needs: whether they are there, and whether the run's pods can use them. Pure but for its name.

use anneal_api::{
    names::label,
    resources::{PodTemplate, TrainingRun},
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

/// Topology key of a single node.
const NODE: &str = "kubernetes.io/hostname";

/// A claim that a run needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It can be used.
    Present,
    /// It is made with the first attempt.
    ToCreate,
    /// There is none of that name.
    Missing(String),
    /// It is being deleted.
    Deleting(String),
    /// It lost the volume that was bound to it.
    Lost(String),
    /// Another run's template or a person made it, so this run must not write to it.
    Taken(String),
    /// The run's pods cannot use it.
    Unfit {
        /// Its name.
        name: String,
        /// Why not, and what to do.
        problem: String,
    },
}

impl Claim {
    /// What is in the way of using it, as a reason and a sentence.
    pub fn obstacle(&self, role: &str) -> Option<(&'static str, String)> {
        Some(match self {
            Self::Present | Self::ToCreate => return None,
            Self::Missing(name) => (
                "ClaimNotFound",
                format!(
                    "the {role} claim {name} does not exist; create PersistentVolumeClaim {name} in this namespace, and the run goes on by itself"
                ),
            ),
            Self::Deleting(name) => (
                "ClaimDeleting",
                format!("the {role} claim {name} is being deleted; create it again, and the run goes on by itself"),
            ),
            Self::Lost(name) => (
                "ClaimLost",
                format!("the {role} claim {name} lost its volume; restore the volume or create the claim again"),
            ),
            Self::Taken(name) => (
                "ClaimTaken",
                format!(
                    "PersistentVolumeClaim {name} exists and was not made for this run; to write to it, name it in output.claimName of a new run, otherwise delete it"
                ),
            ),
            Self::Unfit { name, problem } => ("ClaimUnfit", format!("the {role} claim {name} {problem}")),
        })
    }
}

/// What a run does with a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Its pods write to it.
    Write,
    /// Its pods read from it.
    Read,
}

/// The claim that a run writes to.
pub fn output(run: &TrainingRun, found: Option<&PersistentVolumeClaim>) -> Claim {
    let name = run.output_claim();
    let Some(template) = &run.spec.output.volume_claim_template else { return given(run, &name, found, Use::Write) };
    match found {
        None => {
            let modes: Vec<&str> = template.spec.access_modes.iter().map(|mode| mode.as_str()).collect();
            misfit(run, &modes, Use::Write).map_or(Claim::ToCreate, |problem| Claim::Unfit { name, problem })
        }
        // A claim that a deleted namesake left behind is used again: each run has a directory of its own on it.
        Some(claim) if claim.labels().get(label::RUN) == Some(&run.name_any()) => given(run, &name, found, Use::Write),
        Some(_) => Claim::Taken(name),
    }
}

/// A claim that somebody else made.
pub fn given(run: &TrainingRun, name: &str, found: Option<&PersistentVolumeClaim>, how: Use) -> Claim {
    let name = name.to_owned();
    let Some(claim) = found else { return Claim::Missing(name) };
    if claim.metadata.deletion_timestamp.is_some() {
        return Claim::Deleting(name);
    }
    let status = claim.status.as_ref();
    if status.and_then(|status| status.phase.as_deref()) == Some("Lost") {
        return Claim::Lost(name);
    }
    let spec = claim.spec.as_ref();
    if spec.and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        let problem = "is a raw block device; name a claim with volumeMode Filesystem".to_owned();
        return Claim::Unfit { name, problem };
    }
    // A bound claim knows what its volume can do; before that it says what was asked for.
    let bound = status.and_then(|status| status.access_modes.as_ref()).filter(|modes| !modes.is_empty());
    let modes = bound.or_else(|| spec.and_then(|spec| spec.access_modes.as_ref()));
    let modes: Vec<&str> = modes.into_iter().flatten().map(String::as_str).collect();
    misfit(run, &modes, how).map_or(Claim::Present, |problem| Claim::Unfit { name, problem })
}

/// Why pods of the run cannot use a volume with these access modes.
fn misfit(run: &TrainingRun, modes: &[&str], how: Use) -> Option<String> {
    let nodes = run.spec.num_nodes;
    let has = |mode: &str| modes.contains(&mode);
    if modes.is_empty() || has("ReadWriteMany") {
        return None;
    }
    let several = match how {
        Use::Write if !has("ReadWriteOnce") && !has("ReadWriteOncePod") => {
            return Some("is ReadOnlyMany, and the run writes to it; name a claim that can be written to".to_owned());
        }
        Use::Write => "ReadWriteMany",
        Use::Read if has("ReadOnlyMany") => return None,
        Use::Read => "ReadWriteMany or ReadOnlyMany",
    };
    if nodes == 1 || (has("ReadWriteOnce") && keeps_to_one_node(&run.spec.pod_template)) {
        return None;
    }
    let unit = if has("ReadWriteOnce") { "node" } else { "pod" };
    Some(format!(
        "is {}, which one {unit} at a time can use, and numNodes is {nodes}; use a claim that is {several}{}",
        modes.join(", "),
        if unit == "node" {
            ", or keep the pods on one node by podTemplate.affinity.podAffinity over kubernetes.io/hostname"
        } else {
            ""
        }
    ))
}

/// Whether the user keeps all pods on one node.
fn keeps_to_one_node(template: &PodTemplate) -> bool {
    let affinity = template.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
    let required = affinity.and_then(|pods| pods.required_during_scheduling_ignored_during_execution.as_ref());
    template.node_selector.contains_key(NODE) || required.into_iter().flatten().any(|term| term.topology_key == NODE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::training_run::fixtures::run;

    fn claim(modes: &[&str]) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "models"}, "spec": {"accessModes": modes}}))
            .expect("a claim")
    }

    fn sentence(run: &TrainingRun, claim: &PersistentVolumeClaim) -> String {
        output(run, Some(claim))
            .obstacle("output")
            .map(|(reason, text)| format!("{reason}: {text}"))
            .unwrap_or_default()
    }

    #[test]
    fn a_claim_for_one_node_is_enough_for_one_pod() {
        for mode in ["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"] {
            assert_eq!(output(&run(&json!({})), Some(&claim(&[mode]))), Claim::Present);
        }
        let said = sentence(&run(&json!({})), &claim(&["ReadOnlyMany"]));
        assert!(said.contains("name a claim that can be written to"), "{said}");
    }

    #[test]
    fn several_nodes_need_a_claim_that_several_nodes_can_mount_or_to_stay_on_one() {
        let two = json!({"numNodes": 2, "podTemplate": {"image": "a"}});
        let said = sentence(&run(&two), &claim(&["ReadWriteOnce"]));
        assert!(said.contains("ClaimUnfit") && said.contains("use a claim that is ReadWriteMany, or keep"), "{said}");
        assert_eq!(output(&run(&two), Some(&claim(&["ReadWriteMany"]))), Claim::Present);
        let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": NODE}]}});
        let together = run(&json!({"numNodes": 2, "podTemplate": {"image": "a", "affinity": near}}));
        assert_eq!(output(&together, Some(&claim(&["ReadWriteOnce"]))), Claim::Present);
        assert!(sentence(&together, &claim(&["ReadWriteOncePod"])).contains("one pod at a time"));
        let read = given(&run(&two), "photos", Some(&claim(&["ReadOnlyMany"])), Use::Read);
        assert_eq!(read, Claim::Present);
    }

    #[test]
    fn a_claim_from_a_template_is_made_once_and_never_taken_from_somebody_else() {
        let storage = json!({"spec": {"resources": {"requests": {"storage": "1Gi"}}}});
        let cats = run(&json!({"output": {"volumeClaimTemplate": storage}}));
        assert_eq!(cats.output_claim(), "cats-output");
        assert_eq!(output(&cats, None), Claim::ToCreate);
        let mut theirs = claim(&["ReadWriteOnce"]);
        assert_eq!(output(&cats, Some(&theirs)), Claim::Taken("cats-output".to_owned()));
        theirs.labels_mut().insert(label::RUN.to_owned(), "cats".to_owned());
        assert_eq!(output(&cats, Some(&theirs)), Claim::Present);
    }

    #[test]
    fn a_block_device_is_no_place_for_files() {
        let mut block = claim(&["ReadWriteOnce"]);
        block.spec.get_or_insert_default().volume_mode = Some("Block".to_owned());
        assert!(sentence(&run(&json!({})), &block).contains("volumeMode Filesystem"));
    }
}
