//! Generated pods: what the operator decides, over what the user's `podTemplate` allows, within the restricted Pod
//! Security profile.

use std::collections::BTreeMap;

use anneal_api::resources::{FsGroupChangePolicy, ImagePullPolicy, PodSecurity, PodTemplate};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, EmptyDirVolumeSource, EnvVar, LocalObjectReference, PodSecurityContext, PodSpec,
        PodTemplateSpec, SeccompProfile, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{DefaultResources, resources};

/// User and group of generated pods; the images declare the same.
const USER: i64 = 65532;
/// Where a program looks for room for temporary files.
const TMP: &str = "/tmp";
/// Where a program looks for POSIX shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// What the operator decides about a pod; the rest is the user's [`PodTemplate`].
#[derive(Debug)]
pub struct PodPlan {
    /// Name of its one container.
    pub container: &'static str,
    /// Image where the user names none.
    pub image: String,
    /// Pull policy of the image, where the user names none.
    pub image_pull_policy: Option<String>,
    /// Arguments where the user gives neither command nor arguments.
    pub args: Vec<String>,
    /// Environment that the operator sets; it wins over the user's.
    pub env: Vec<EnvVar>,
    /// CPU and memory where the user says nothing.
    pub resources: DefaultResources,
    /// Labels that the operator sets; they win over the user's.
    pub labels: BTreeMap<String, String>,
    /// Volumes and where they are mounted.
    pub volumes: Vec<(Volume, VolumeMount)>,
    /// Seconds between SIGTERM and SIGKILL where the user says nothing.
    pub grace_seconds: i64,
}

/// A pod with one container that the restricted Pod Security profile takes: non-root, no privileges, read-only root
/// file system with an empty `/tmp`, and no API token unless the user names a service account.
pub fn pod(plan: PodPlan, user: &PodTemplate) -> PodTemplateSpec {
    let mut labels = user.labels.clone();
    labels.extend(plan.labels.clone());
    let grace_seconds = user.termination_grace_period_seconds.unwrap_or(plan.grace_seconds);
    let (volumes, container) = container(plan, user);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(user.annotations.clone()).filter(|annotations| !annotations.is_empty()),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            containers: vec![container],
            volumes: Some(volumes),
            automount_service_account_token: Some(user.service_account_name.is_some()),
            service_account_name: user.service_account_name.clone(),
            enable_service_links: Some(false),
            node_selector: Some(user.node_selector.clone()).filter(|selector| !selector.is_empty()),
            tolerations: some(user.tolerations.clone()),
            affinity: user.affinity.clone(),
            topology_spread_constraints: some(user.topology_spread_constraints.clone()),
            priority_class_name: user.priority_class_name.clone(),
            scheduler_name: user.scheduler_name.clone(),
            runtime_class_name: user.runtime_class_name.clone(),
            termination_grace_period_seconds: Some(grace_seconds),
            image_pull_secrets: some(
                user.image_pull_secrets
                    .iter()
                    .map(|secret| LocalObjectReference { name: secret.name.clone() })
                    .collect(),
            ),
            security_context: Some(users_and_groups(user.security_context.as_ref())),
            ..PodSpec::default()
        }),
    }
}

fn container(plan: PodPlan, user: &PodTemplate) -> (Vec<Volume>, Container) {
    let own: Vec<&str> = plan.env.iter().map(|variable| variable.name.as_str()).collect();
    let mut env: Vec<EnvVar> =
        user.env.iter().filter(|variable| !own.contains(&variable.name.as_str())).cloned().collect();
    let own_entry_point = user.command.is_empty() && user.args.is_empty();
    let read_only = user.security_context.as_ref().and_then(|context| context.read_only_root_filesystem);
    let (volumes, mounts) = volumes(plan.volumes, user);
    env.extend(plan.env);
    let container = Container {
        name: plan.container.to_owned(),
        image: Some(user.image.clone().unwrap_or(plan.image)),
        image_pull_policy: user
            .image_pull_policy
            .map(ImagePullPolicy::as_str)
            .map(str::to_owned)
            .or(plan.image_pull_policy),
        command: some(user.command.clone()),
        args: some(if own_entry_point { plan.args } else { user.args.clone() }),
        env: some(env),
        env_from: some(user.env_from.clone()),
        resources: Some(resources(user.resources.as_ref(), plan.resources)),
        volume_mounts: Some(mounts),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            read_only_root_filesystem: Some(read_only.unwrap_or(true)),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    (volumes, container)
}

/// The operator's volumes, the user's, and room for temporary files unless the user has brought some.
fn volumes(own: Vec<(Volume, VolumeMount)>, user: &PodTemplate) -> (Vec<Volume>, Vec<VolumeMount>) {
    let (mut volumes, mut mounts): (Vec<_>, Vec<_>) = own.into_iter().unzip();
    volumes.extend(user.volumes.iter().cloned().map(Volume::from));
    mounts.extend(user.volume_mounts.iter().cloned().map(VolumeMount::from));
    let mut volumes = one_a_claim(volumes, &mut mounts);
    let mut empty = |name: &str, path: &str, source: EmptyDirVolumeSource| {
        volumes.push(Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() });
        mounts.push(VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() });
    };
    if user.volume_mounts.iter().all(|mount| mount.mount_path.trim_end_matches('/') != TMP) {
        empty("tmp", TMP, EmptyDirVolumeSource::default());
    }
    if let Some(size) = &user.shared_memory_size {
        let source =
            EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: Some(Quantity(size.clone())) };
        empty("shm", SHARED_MEMORY, source);
    }
    (volumes, mounts)
}

/// One volume for each claim: the kubelet waits for ever for the second volume of a claim that it has set up already. The
/// volume can be written to where one of them could; each mount can do what it could before.
fn one_a_claim(all: Vec<Volume>, mounts: &mut [VolumeMount]) -> Vec<Volume> {
    let mut volumes: Vec<Volume> = Vec::with_capacity(all.len());
    for volume in all {
        let Some(claim) = volume.persistent_volume_claim.as_ref() else {
            volumes.push(volume);
            continue;
        };
        // Two volumes of one name are the API server's to refuse.
        let same = volumes.iter_mut().filter(|other| other.name != volume.name).find_map(|other| {
            let source = other.persistent_volume_claim.as_mut().filter(|it| it.claim_name == claim.claim_name)?;
            Some((&other.name, source))
        });
        for mount in mounts.iter_mut().filter(|mount| mount.name == volume.name) {
            mount.read_only = claim.read_only.filter(|only| *only).or(mount.read_only);
            if let Some((name, _)) = &same {
                mount.name.clone_from(name);
            }
        }
        match same {
            Some((_, source)) => source.read_only = source.read_only.filter(|_| claim.read_only == Some(true)),
            None => volumes.push(volume),
        }
    }
    volumes
}

fn users_and_groups(user: Option<&PodSecurity>) -> PodSecurityContext {
    let none = PodSecurity::default();
    let user = user.unwrap_or(&none);
    // A claim with many checkpoints would otherwise be walked at every start.
    let change = user.fs_group_change_policy.unwrap_or(FsGroupChangePolicy::OnRootMismatch);
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(user.run_as_user.unwrap_or(USER)),
        run_as_group: Some(user.run_as_group.unwrap_or(USER)),
        fs_group: Some(user.fs_group.unwrap_or(USER)),
        fs_group_change_policy: Some(change.as_str().to_owned()),
        supplemental_groups: some(user.supplemental_groups.clone()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::children::env;

    fn made(template: serde_json::Value) -> PodSpec {
        let plan = PodPlan {
            container: "trainer",
            image: "trainer:1".to_owned(),
            image_pull_policy: Some("Always".to_owned()),
            args: vec!["train".to_owned()],
            env: vec![env("ANNEAL_RUN", "cats")],
            resources: DefaultResources { requests: ("1", "1Gi"), limits: ("1", "1Gi") },
            labels: BTreeMap::new(),
            volumes: Vec::new(),
            grace_seconds: 60,
        };
        let user: PodTemplate = serde_json::from_value(template).expect("a template");
        pod(plan, &user).spec.expect("a pod")
    }

    fn mounted_at(pod: &PodSpec) -> Vec<&str> {
        pod.containers[0].volume_mounts.iter().flatten().map(|mount| mount.mount_path.as_str()).collect()
    }

    #[test]
    fn what_the_user_says_is_in_the_pod() {
        let pod = made(json!({
            "imagePullPolicy": "Never",
            "envFrom": [{"secretRef": {"name": "s3"}}],
            "schedulerName": "volcano", "runtimeClassName": "gvisor", "terminationGracePeriodSeconds": 5,
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
            ],
            "affinity": {"nodeAffinity": {}},
            "securityContext": {"runAsUser": 1000, "fsGroup": 100, "readOnlyRootFilesystem": false},
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "volumeMounts": [{"name": "cache", "mountPath": "/cache", "readOnly": true}],
            "sharedMemorySize": "256Mi"
        }));
        let container = &pod.containers[0];
        assert_eq!(container.image_pull_policy.as_deref(), Some("Never"));
        assert_eq!(container.env_from.as_ref().map(Vec::len), Some(1));
        let security = container.security_context.as_ref().expect("a security context");
        assert_eq!(security.read_only_root_filesystem, Some(false));
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(pod.scheduler_name.as_deref(), Some("volcano"));
        assert_eq!(pod.runtime_class_name.as_deref(), Some("gvisor"));
        assert_eq!(pod.termination_grace_period_seconds, Some(5));
        assert!(pod.affinity.is_some() && pod.topology_spread_constraints.is_some());
        let users = pod.security_context.as_ref().expect("users");
        assert_eq!((users.run_as_user, users.run_as_group, users.fs_group), (Some(1000), Some(USER), Some(100)));
        assert_eq!(users.run_as_non_root, Some(true));
        assert_eq!(mounted_at(&pod), ["/cache", "/tmp", "/dev/shm"]);
        let shared = pod.volumes.iter().flatten().find(|volume| volume.name == "shm").expect("shared memory");
        let source = shared.empty_dir.as_ref().expect("an empty folder");
        assert_eq!(source.medium.as_deref(), Some("Memory"));
        assert_eq!(source.size_limit.as_ref().map(|size| size.0.as_str()), Some("256Mi"));
    }

    #[test]
    fn a_user_who_brings_room_for_temporary_files_gets_no_other() {
        let pod = made(json!({
            "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}]
        }));
        assert_eq!(mounted_at(&pod), ["/tmp"]);
    }

    #[test]
    fn a_claim_that_the_user_mounts_too_is_one_volume_and_each_mount_can_do_what_it_could() {
        let claim = |name: &str, read_only: bool| -> Volume {
            let source = json!({"claimName": "models", "readOnly": read_only});
            serde_json::from_value(json!({"name": name, "persistentVolumeClaim": source})).expect("a volume")
        };
        let mount = |name: &str| VolumeMount { name: name.to_owned(), mount_path: "/own".into(), ..Default::default() };
        let user: PodTemplate = serde_json::from_value(json!({
            "volumes": [claim("mine", false), {"name": "other", "persistentVolumeClaim": {"claimName": "photos"}}],
            "volumeMounts": [
                {"name": "mine", "mountPath": "/mine", "subPath": "cache"}, {"name": "other", "mountPath": "/photos"}
            ]
        }))
        .expect("a template");
        let (all, mounts) = volumes(vec![(claim("models", true), mount("models"))], &user);
        let claims: Vec<_> = all.iter().filter_map(|it| it.persistent_volume_claim.as_ref()).collect();
        assert_eq!(claims.iter().map(|it| it.claim_name.as_str()).collect::<Vec<_>>(), ["models", "photos"]);
        assert_eq!(claims[0].read_only, None, "somebody writes to it");
        let told: Vec<_> = mounts.iter().map(|it| (it.name.as_str(), it.mount_path.as_str(), it.read_only)).collect();
        let [own, mine, other, _] = told[..] else { panic!("{told:?}") };
        assert_eq!((own, mine), (("models", "/own", Some(true)), ("models", "/mine", None)));
        assert_eq!(other, ("other", "/photos", None));
        assert_eq!(mounts[1].sub_path.as_deref(), Some("cache"));

        let readers = vec![(claim("a", true), mount("a")), (claim("b", true), mount("b"))];
        let (all, mounts) = volumes(readers, &PodTemplate::default());
        assert_eq!(all[0].persistent_volume_claim.as_ref().and_then(|it| it.read_only), Some(true));
        assert!(mounts[..2].iter().all(|it| it.name == "a" && it.read_only == Some(true)), "{mounts:?}");
    }

    #[test]
    fn the_operators_variables_win() {
        let pod = made(json!({"env": [{"name": "ANNEAL_RUN", "value": "dogs"}, {"name": "A", "value": "b"}]}));
        let env: Vec<_> = pod.containers[0].env.iter().flatten().map(|v| (v.name.clone(), v.value.clone())).collect();
        assert_eq!(env, [("A".to_owned(), Some("b".to_owned())), ("ANNEAL_RUN".to_owned(), Some("cats".to_owned()))]);
    }
}
