//! What the API server refuses of a `TrainingRun`, manifest by manifest, and what it says.

use anneal_tests::{Outcome, in_namespace, manifest::training_run};
use serde_json::{Value, json};

use super::{all_refused, all_taken};

fn run(spec: Value) -> Value {
    training_run("cats", spec)
}

fn pods(template: &Value) -> Value {
    run(json!({"podTemplate": template}))
}

fn hyperparameters(values: &Value) -> Value {
    run(json!({"hyperparameters": values}))
}

fn dataset(uri: &str) -> Value {
    run(json!({"dataset": {"uri": uri}}))
}

fn mlflow(server: &Value) -> Value {
    run(json!({"tracking": {"mlflow": server}}))
}

fn template(spec: &Value) -> Value {
    json!({"output": {"claimName": null, "volumeClaimTemplate": {"spec": spec}}})
}

fn volume(volume: &Value) -> Value {
    json!({"volumes": [volume]})
}

fn mount(path: &str) -> Value {
    json!({"volumes": [{"name": "a", "emptyDir": {}}], "volumeMounts": [{"name": "a", "mountPath": path}]})
}

#[tokio::test]
async fn a_run_that_makes_no_sense_is_refused_with_what_to_write() -> Outcome {
    let long = "c".repeat(41);
    let digest = "0123456789abcdef".repeat(4);
    let cases = vec![
        // Names.
        (training_run(&long, json!({})), "metadata.name must be at most 40 characters"),
        (training_run("2cats", json!({})), "metadata.name must start with a letter"),
        (training_run("big.cats", json!({})), "metadata.name must start with a letter and hold only a-z, 0-9 and -"),
        // Model and dataset.
        (
            run(json!({"model": {"architecture": "simple", "inputSize": 64}})),
            "model.inputSize must be 224 for architecture simple",
        ),
        (run(json!({"model": {"architecture": "resnet"}})), "supported values: \"improved\", \"simple\""),
        (run(json!({"model": {"inputSize": 16}})), "greater than or equal to 32"),
        (run(json!({"model": {"inputSize": 2048}})), "less than or equal to 1024"),
        (run(json!({"model": {"size": 64}})), "unknown field \"spec.model.size\""),
        (run(json!({"dataset": null})), "spec.dataset: Required value"),
        (run(json!({"dataset": {"uri": "photos/cats"}})), "dataset.uri must be pvc://CLAIM/PATH"),
        (run(json!({"dataset": {"uri": "pvc://photos/../secret"}})), "dataset.uri must not contain a `..` part"),
        (run(json!({"dataset": {"uri": "ftp://photos"}})), "dataset.uri must be pvc://CLAIM/PATH"),
        (run(json!({"dataset": {"uri": "pvc://Photos/cats"}})), "dataset.uri must be pvc://CLAIM/PATH"),
        (run(json!({"dataset": {"uri": ""}})), "spec.dataset.uri"),
        (run(json!({"dataset": {"uri": "https://photos.example/set/"}})), "name a file that ends in .tar"),
        (run(json!({"dataset": {"uri": "s3://me:secret@photos/set"}})), "dataset.uri must be pvc://CLAIM/PATH"),
        (run(json!({"dataset": {"uri": "s3://photos", "digest": "sha256:12"}})), "spec.dataset.digest"),
        (
            run(json!({"dataset": {"uri": "s3://photos", "digest": format!("md5:{:032}", 0)}})),
            "dataset.digest: md5 is what a .dvc file names",
        ),
        (
            run(json!({"dataset": {"uri": "synthetic://", "credentialsSecretRef": {"name": "bucket"}}})),
            "dataset.credentialsSecretRef is for servers",
        ),
        (
            run(json!({"dataset": {"uri": "s3://photos", "credentialsSecretRef": {"name": "My Bucket"}}})),
            "spec.dataset.credentialsSecretRef.name",
        ),
        // Where it is recorded.
        (mlflow(&json!({"uri": "mlflow:5000"})), "spec.tracking.mlflow.uri"),
        (mlflow(&json!({"uri": "http://me:secret@mlflow"})), "spec.tracking.mlflow.uri"),
        (mlflow(&json!({"uri": "http://mlflow", "registeredModel": "a/b"})), "spec.tracking.mlflow.registeredModel"),
        (mlflow(&json!({"uri": "http://mlflow", "alias": "champion"})), "name that in tracking.mlflow.registeredModel"),
        (
            mlflow(&json!({"uri": "http://mlflow", "registeredModel": "a", "alias": "latest"})),
            "tracking.mlflow.alias must not be latest",
        ),
        (mlflow(&json!({"uri": "http://mlflow", "experiments": "a"})), "unknown field"),
        // What it begins with.
        (run(json!({"initFrom": {}})), "name the checkpoint in initFrom by either trainingRunRef or claimName"),
        (
            run(
                json!({"initFrom": {"trainingRunRef": {"name": "a"}, "claimName": "b", "path": "c", "sha256": digest}}),
            ),
            "name the checkpoint in initFrom by either trainingRunRef or claimName",
        ),
        (
            run(json!({"initFrom": {"claimName": "b", "path": "c"}})),
            "initFrom.claimName, path and sha256 belong together",
        ),
        (
            run(json!({"initFrom": {"claimName": "b", "path": "../c", "sha256": digest}})),
            "initFrom.path is relative to the claim's root",
        ),
        (run(json!({"initFrom": {"trainingRunRef": {"name": "cats"}}})), "initFrom.trainingRunRef names this very run"),
        (run(json!({"initFrom": {"trainingRunRef": {"name": "a"}, "freeze": ["layer 1"]}})), "spec.initFrom.freeze[0]"),
        // Where it writes.
        (run(json!({"output": null})), "spec.output: Required value"),
        (run(json!({"output": {"claimName": "My_Claim"}})), "spec.output.claimName"),
        (run(json!({"output": {"claimName": null}})), "set either output.claimName"),
        (
            run(json!({"output": {"volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}})),
            "set either output.claimName",
        ),
        (run(json!({"output": {"whenDeleted": "Delete"}})), "output.whenDeleted goes with output.volumeClaimTemplate"),
        (
            run(
                json!({"output": {"claimName": null, "whenDeleted": "Keep", "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}}),
            ),
            "supported values: \"Delete\", \"Retain\"",
        ),
        (run(template(&json!({}))), "spec.output.volumeClaimTemplate.spec.resources: Required value"),
        (
            run(template(&json!({"resources": {"requests": {"storage": "much"}}}))),
            "volumeClaimTemplate.spec.resources.requests.storage",
        ),
        (
            run(template(&json!({"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}))),
            "supported values: \"ReadWriteOnce\"",
        ),
        (
            run(template(&json!({"accessModes": [], "resources": {"requests": {"storage": "1Gi"}}}))),
            "spec.output.volumeClaimTemplate.spec.accessModes",
        ),
        // Numbers.
        (run(json!({"maxRetries": 1000})), "less than or equal to 100"),
        (run(json!({"maxRetries": -1})), "greater than or equal to 0"),
        (run(json!({"activeDeadlineSeconds": 0})), "greater than or equal to 1"),
        (run(json!({"numNodes": 0})), "greater than or equal to 1"),
        (run(json!({"numNodes": 2})), "numNodes above 1 needs podTemplate.image"),
        (run(json!({"numNodes": 1000, "podTemplate": {"image": "a"}})), "less than or equal to 256"),
    ];
    in_namespace(async |ns| all_refused(ns, cases).await).await
}

#[tokio::test]
async fn hyperparameters_out_of_range_are_refused_also_as_whole_numbers() -> Outcome {
    let unknown = "unknown field \"spec.hyperparameters.epoch\"";
    let cases = vec![
        (hyperparameters(&json!({"epoch": 3})), unknown),
        (hyperparameters(&json!({"epochs": 0})), "greater than or equal to 1"),
        (hyperparameters(&json!({"epochs": 1.5})), "spec.hyperparameters.epochs"),
        (hyperparameters(&json!({"epochs": "ten"})), "spec.hyperparameters.epochs"),
        (hyperparameters(&json!({"batchSize": 5000})), "less than or equal to 4096"),
        (hyperparameters(&json!({"learningRate": "fast"})), "spec.hyperparameters.learningRate"),
        (
            hyperparameters(&json!({"learningRate": 0})),
            "hyperparameters.learningRate must be between 0.000000001 and 100",
        ),
        (hyperparameters(&json!({"learningRate": 101})), "less than or equal to 100"),
        (hyperparameters(&json!({"optimizer": "adam"})), "supported values: \"Adam\", \"AdamW\", \"SGD\""),
        (hyperparameters(&json!({"schedule": "cosine"})), "supported values: \"Constant\", \"Cosine\""),
        (hyperparameters(&json!({"precision": "float16"})), "supported values: \"float32\", \"bfloat16\""),
        (hyperparameters(&json!({"momentum": 1})), "spec.hyperparameters.momentum"),
        (hyperparameters(&json!({"labelSmoothing": 0.6})), "less than or equal to 0.5"),
        (
            hyperparameters(&json!({"validationShare": 0})),
            "hyperparameters.validationShare must be between 0.01 and 0.5",
        ),
        (hyperparameters(&json!({"seed": -1})), "greater than or equal to 0"),
        (hyperparameters(&json!({"threads": 0})), "greater than or equal to 1"),
        (hyperparameters(&json!({"augmentation": {"hue": 0.7}})), "spec.hyperparameters.augmentation.hue"),
        (
            hyperparameters(&json!({"augmentation": {"blur": 1}})),
            "unknown field \"spec.hyperparameters.augmentation.blur\"",
        ),
    ];
    in_namespace(async |ns| all_refused(ns, cases).await).await
}

#[tokio::test]
async fn pods_that_make_no_sense_or_break_the_restricted_profile_are_refused() -> Outcome {
    let cases = vec![
        (pods(&json!({"image": "my image"})), "spec.podTemplate.image"),
        (pods(&json!({"imagePullPolicy": "Sometimes"})), "supported values: \"Always\", \"IfNotPresent\", \"Never\""),
        (pods(&json!({"command": "python train.py"})), "spec.podTemplate.command"),
        (
            pods(&json!({"env": [{"name": "ANNEAL_RUN", "value": "a"}]})),
            "env must not set variables that start with ANNEAL_ or PET_",
        ),
        (
            pods(&json!({"env": [{"name": "PET_NNODES", "value": "4"}]})),
            "arguments of torchrun win over its PET_ variables",
        ),
        (pods(&json!({"env": [{"value": "4"}]})), "spec.podTemplate.env[0].name: Required value"),
        (
            pods(&json!({"envFrom": [{"secret": {"name": "a"}}]})),
            "unknown field \"spec.podTemplate.envFrom[0].secret\"",
        ),
        (
            pods(&json!({"labels": {"anneal.dev/model-deployment": "cats"}})),
            "labels under anneal.dev/ and batch.kubernetes.io/",
        ),
        (
            pods(&json!({"labels": {"batch.kubernetes.io/job-name": "a"}})),
            "labels under anneal.dev/ and batch.kubernetes.io/",
        ),
        (pods(&json!({"labels": {"team": "the cats"}})), "spec.podTemplate.labels.team"),
        (pods(&json!({"annotations": {"anneal.dev/a": "b"}})), "annotations under anneal.dev/ are set by the operator"),
        (pods(&json!({"nodeSelector": {"zone": "a b"}})), "spec.podTemplate.nodeSelector.zone"),
        (pods(&json!({"resources": {"limits": {"memory": "lots"}}})), "spec.podTemplate.resources.limits.memory"),
        (pods(&json!({"resources": {"limits": {"memroy": "1Gi"}}})), "resources.limits knows cpu, memory"),
        (pods(&json!({"resources": {"requests": {"gpu": 1}}})), "resources.requests knows cpu, memory"),
        (
            pods(&json!({"resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "1500m"}}})),
            "must not be above resources.limits",
        ),
        (
            pods(&json!({"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1500Mi"}}})),
            "must not be above resources.limits",
        ),
        (pods(&json!({"resources": {"requests": {"nvidia.com/gpu": 1}}})), "devices and huge pages cannot be shared"),
        (
            pods(&json!({"resources": {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 2}}})),
            "devices and huge pages cannot be shared",
        ),
        (pods(&json!({"resources": {"claims": []}})), "unknown field \"spec.podTemplate.resources.claims\""),
        (pods(&json!({"securityContext": {"runAsUser": 0}})), "securityContext.runAsUser must not be 0"),
        (pods(&json!({"securityContext": {"runAsNonRoot": false}})), "securityContext.runAsNonRoot must be true"),
        (
            pods(&json!({"securityContext": {"privileged": true}})),
            "unknown field \"spec.podTemplate.securityContext.privileged\"",
        ),
        (
            pods(&json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            "unknown field \"spec.podTemplate.securityContext.capabilities\"",
        ),
        (
            pods(&json!({"securityContext": {"fsGroupChangePolicy": "Never"}})),
            "supported values: \"OnRootMismatch\", \"Always\"",
        ),
        (pods(&json!({"hostNetwork": true})), "unknown field \"spec.podTemplate.hostNetwork\""),
        (pods(&json!({"hostPID": true})), "unknown field \"spec.podTemplate.hostPID\""),
        (pods(&json!({"initContainers": []})), "unknown field \"spec.podTemplate.initContainers\""),
        (pods(&json!({"terminationGracePeriodSeconds": 0})), "greater than or equal to 1"),
        (pods(&json!({"serviceAccountName": "My Account"})), "spec.podTemplate.serviceAccountName"),
        (pods(&json!({"imagePullSecrets": ["registry"]})), "spec.podTemplate.imagePullSecrets[0]"),
        (
            pods(&json!({"tolerations": [{"key": "gpu", "operater": "Exists"}]})),
            "unknown field \"spec.podTemplate.tolerations[0].operater\"",
        ),
        (pods(&json!({"topologySpreadConstraints": [{"maxSkew": 1}]})), "topologyKey: Required value"),
    ];
    in_namespace(async |ns| all_refused(ns, cases).await).await
}

#[tokio::test]
async fn volumes_of_the_node_and_places_of_the_operator_are_refused() -> Outcome {
    let cases = vec![
        (
            pods(&volume(&json!({"name": "a", "hostPath": {"path": "/etc"}}))),
            "unknown field \"spec.podTemplate.volumes[0].hostPath\"",
        ),
        (pods(&volume(&json!({"name": "a"}))), "a volume needs exactly one of configMap"),
        (
            pods(&volume(&json!({"name": "a", "emptyDir": {}, "secret": {"secretName": "b"}}))),
            "a volume needs exactly one of configMap",
        ),
        (pods(&volume(&json!({"emptyDir": {}}))), "spec.podTemplate.volumes[0].name: Required value"),
        (pods(&volume(&json!({"name": "output", "emptyDir": {}}))), "volumes must not be named config"),
        (pods(&volume(&json!({"name": "A", "emptyDir": {}}))), "spec.podTemplate.volumes[0].name"),
        (
            pods(&json!({"volumeMounts": [{"name": "a", "mountPath": "/a"}]})),
            "each of volumeMounts must name one of volumes",
        ),
        (pods(&mount("/output/cache")), "volumeMounts must not be at or below /output"),
        (pods(&mount("/dataset")), "volumeMounts must not be at or below /output"),
        (pods(&mount("data")), "spec.podTemplate.volumeMounts[0].mountPath"),
        (
            pods(&json!({
                "volumes": [{"name": "a", "emptyDir": {}}],
                "volumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "../b"}]
            })),
            "subPath is relative to the volume's root",
        ),
        (pods(&json!({"sharedMemorySize": "lots"})), "spec.podTemplate.sharedMemorySize"),
        (pods(&json!({"sharedMemorySize": "1Gi"})), "sharedMemorySize must be below resources.limits.memory"),
        (
            pods(&json!({
                "sharedMemorySize": "1Mi", "volumes": [{"name": "a", "emptyDir": {}}],
                "volumeMounts": [{"name": "a", "mountPath": "/dev/shm"}]
            })),
            "set either sharedMemorySize or a volumeMount at /dev/shm",
        ),
    ];
    in_namespace(async |ns| all_refused(ns, cases).await).await
}

#[tokio::test]
async fn a_run_that_says_everything_is_taken() -> Outcome {
    let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"team": "pets"}}
    }]}});
    let everything = json!({
        "image": "registry.example/pets/train:1", "imagePullPolicy": "IfNotPresent",
        "command": ["torchrun"], "args": ["train.py"],
        "env": [
            {"name": "A", "value": "b"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
        ],
        "envFrom": [{"secretRef": {"name": "s3"}}, {"configMapRef": {"name": "flags", "optional": true}}],
        "resources": {
            "requests": {"cpu": 2, "memory": "4Gi"},
            "limits": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": 1}
        },
        "labels": {"team": "pets"}, "annotations": {"example.com/note": "any text"},
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": affinity,
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "priorityClassName": "high", "schedulerName": "volcano", "runtimeClassName": "nvidia",
        "serviceAccountName": "trainer", "imagePullSecrets": [{"name": "registry"}],
        "securityContext": {
            "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true, "fsGroup": 1000,
            "fsGroupChangePolicy": "Always", "supplementalGroups": [44], "readOnlyRootFilesystem": false
        },
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": "10Gi"}},
            {"name": "more", "persistentVolumeClaim": {"claimName": "more", "readOnly": true}},
            {"name": "tokens", "projected": {"sources": [{"secret": {"name": "hub"}}]}}
        ],
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "more", "mountPath": "/more", "subPath": "a/b", "readOnly": true},
            {"name": "tokens", "mountPath": "/var/run/tokens"}
        ],
        "sharedMemorySize": "1Gi", "terminationGracePeriodSeconds": 120
    });
    let own_claim = json!({"claimName": null, "whenDeleted": "Delete", "volumeClaimTemplate": {
        "metadata": {"labels": {"team": "pets"}},
        "spec": {
            "accessModes": ["ReadWriteMany"], "storageClassName": "nfs", "resources": {"requests": {"storage": 1_000_000}}
        }
    }});
    let good = vec![
        run(json!({"podTemplate": everything, "numNodes": 4, "output": own_claim})),
        run(json!({"model": {"architecture": "simple", "inputSize": 224}})),
        dataset("https://photos.example/set.tar?signature=a"),
        dataset("s3://photos/set"),
        dataset("gs://photos"),
        dataset("dvc+https://photos.example/repository/photos.dvc"),
        dataset("dvc+file:///repository"),
        run(json!({"dataset": {"uri": "dvc+s3://photos/repository", "digest": format!("md5:{:032}.dir", 0)}})),
        run(json!({"dataset": {"uri": "s3://photos", "credentialsSecretRef": {"name": "bucket"}}})),
        mlflow(&json!({"uri": "https://mlflow.example/team", "credentialsSecretRef": {"name": "mlflow"}})),
        mlflow(&json!({"uri": "http://mlflow:5000", "registeredModel": "Cats and dogs", "alias": "champion"})),
    ];
    in_namespace(async |ns| all_taken(ns, good).await).await
}
