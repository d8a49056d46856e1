//! kubectl's plugin, as people use it: through kubectl, against what the operator really does. What it prints is kept in
//! `.anneal/plugin`, to be looked at.

use std::path::PathBuf;

use anneal_api::resources::{DeploymentPhase, ModelDeployment, RunPhase, TrainingRun};
use anneal_tests::{Context as _, Namespace, Outcome, Result, Said, bail, ensure, in_namespace, manifest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::scenario::{PATIENCE, is_observed, phase, rollout, stable_revision, trained, until_stable};

/// The plugin in a test's namespace, with a file for all that it prints.
struct Plugin<'a> {
    ns: &'a Namespace,
    record: PathBuf,
}

impl<'a> Plugin<'a> {
    fn new(ns: &'a Namespace, story: &str) -> Result<Self> {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.anneal/plugin"));
        std::fs::create_dir_all(&folder)?;
        let record = folder.join(format!("{story}.txt"));
        std::fs::write(&record, "")?;
        Ok(Self { ns, record })
    }

    /// Runs `kubectl anneal` in the namespace.
    async fn run(&self, line: &str) -> Result<Said> {
        let args: Vec<&str> =
            ["anneal"].into_iter().chain(line.split(' ')).chain(["--namespace", &self.ns.name]).collect();
        let said = self.ns.cluster.kubectl(&args).await?;
        let code = said.code.map_or_else(|| "none".to_owned(), |code| code.to_string());
        self.keep(&format!("$ kubectl anneal {line}\n{}{}[exit code {code}]\n\n", said.out, said.err))?;
        Ok(said)
    }

    fn keep(&self, text: &str) -> Result<()> {
        use std::io::Write as _;
        eprint!("{text}");
        std::fs::OpenOptions::new().append(true).open(&self.record)?.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Runs it, and gives what it printed where it ended with this code and said all of that.
    async fn says(&self, line: &str, code: i32, all: &[&str]) -> Result<String> {
        let said = self.run(line).await?;
        let text = format!("{}{}", said.out, said.err);
        ensure!(said.code == Some(code), "`kubectl anneal {line}` ended with {:?}, not {code}:\n{text}", said.code);
        for part in all {
            ensure!(text.contains(part), "`kubectl anneal {line}` does not say {part:?}:\n{text}");
        }
        Ok(said.out)
    }

    /// Runs it on a terminal, and gives all that it wrote there.
    async fn on_a_terminal(&self, line: &str) -> Result<String> {
        let command = format!("stty cols 130 rows 40; kubectl anneal {line} --namespace {}", self.ns.name);
        let terminal = tokio::process::Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("`script`, which gives a program a terminal, cannot be started")?;
        let text = String::from_utf8_lossy(&terminal.stdout).into_owned();
        ensure!(terminal.status.success(), "`{command}` failed on a terminal: {text}");
        self.keep(&format!("$ kubectl anneal {line}   # on a terminal\n{text}\n"))?;
        Ok(text)
    }
}

fn deployment(run: &str, spec: Value) -> Value {
    let mut all = manifest::model_deployment("cats", json!({"gate": {"soakSeconds": 5, "approval": "Manual"}}));
    manifest::merge(&mut all["spec"], spec);
    all["spec"]["model"] = json!({"trainingRunRef": {"name": run}});
    all
}

async fn until_waits(ns: &Namespace) -> Result<String> {
    let waits = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::AwaitingApproval);
    let waits = ns.watch::<ModelDeployment>("cats").until("the candidate waits for a word", PATIENCE, waits).await?;
    waits.status.and_then(|status| status.candidate_revision).context("no candidate")
}

#[tokio::test]
async fn a_training_is_followed_to_its_end_and_what_holds_it_up_is_named() -> Outcome {
    in_namespace(async |ns| {
        let plugin = Plugin::new(ns, "training")?;
        // Nothing is there yet, and then nothing that the run needs.
        plugin.says("status", 0, &["nothing of Anneal's is in namespace"]).await?;
        let mut spec = manifest::well_trained(1);
        spec["hyperparameters"]["epochs"] = 12.into();
        ns.apply(&manifest::training_run("cats", spec)).await?;
        let waits = |run: &TrainingRun| phase(run) == Some(RunPhase::Pending);
        ns.watch::<TrainingRun>("cats").until("it waits for its claim", 60, waits).await?;
        plugin
            .says(
                "diagnose trun/cats",
                1,
                &["ClaimNotFound", "→ kubectl -n", "# creates PersistentVolumeClaim models;"],
            )
            .await?;
        plugin
            .says("logs cats", 2, &["no attempt of cats has begun; `kubectl anneal diagnose trun/cats` says why"])
            .await?;

        // It is followed live on a terminal: drawn again in its place, in colours, with a bar.
        ns.apply(&manifest::claim("models")).await?;
        let live = plugin.on_a_terminal("status trun/cats --watch").await?;
        for part in ["\u{1b}[", "A\r", "█", "Running", "└─ ", "✔ Succeeded"] {
            ensure!(live.contains(part), "the live picture has no {part:?}");
        }
        let plain = plugin.says("status cats", 0, &["✔ Succeeded", "100%", "cats-1", "accuracy"]).await?;
        ensure!(!plain.contains('\u{1b}'), "colours went to something that is no terminal: {plain}");
        plugin.says("logs cats --tail 5", 0, &["trun/cats, attempt 1"]).await?;
        let well = plugin.says("diagnose cats", 0, &["trun/cats  ✔ Succeeded  nothing is wrong"]).await?;
        ensure!(!well.contains("ClaimNotFound"), "what it has overcome is told: {well}");
        let json = plugin.says("status cats -o json", 0, &[]).await?;
        let json: Value = serde_json::from_str(&json)?;
        ensure!(json[0]["word"] == "Succeeded" && json[0]["percent"] == 100 && json[0]["ending"] == "Good", "{json}");

        // It is stopped and goes on; what cannot be is refused with a sentence.
        let mut long = manifest::well_trained(2);
        long["hyperparameters"]["epochs"] = 200.into();
        ns.apply(&manifest::training_run("long", long)).await?;
        let mut run = ns.watch::<TrainingRun>("long");
        run.until("it trains", PATIENCE, |run| phase(run) == Some(RunPhase::Running)).await?;
        plugin.says("suspend long", 0, &["trun/long stops once its pod has written a checkpoint"]).await?;
        run.until("it is suspended", PATIENCE, |run| phase(run) == Some(RunPhase::Suspended)).await?;
        plugin.says("suspend long", 2, &["trun/long is suspended already"]).await?;
        plugin.says("diagnose long", 0, &["it is suspended", "→ kubectl anneal resume trun/long"]).await?;
        plugin.says("resume long", 0, &["trun/long goes on from its checkpoint"]).await?;
        run.until("it trains again", PATIENCE, |run| phase(run) == Some(RunPhase::Running)).await?;
        plugin.says("suspend cats", 2, &["a run that has ended never trains again"]).await?;
        plugin.says("compare cats long", 0, &["hyperparameters.epochs", "hyperparameters.seed", "accuracy"]).await?;

        // An image that cannot be pulled.
        let image = json!({"podTemplate": {"image": "localhost/no-such-image:1"}});
        ns.apply(&manifest::training_run("broken", image)).await?;
        let pulls = |run: &TrainingRun| {
            let conditions = run.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|it| it.reason == "ImagePull")
        };
        ns.watch::<TrainingRun>("broken").until("its image cannot be pulled", PATIENCE, pulls).await?;
        plugin
            .says("diagnose trun/broken", 1, &["ImagePull: attempt 1: the image cannot be pulled", "podTemplate.image"])
            .await?;
        plugin.says("logs broken", 2, &["has not started", "kubectl anneal diagnose trun/broken"]).await?;
        let list = plugin.says("status", 0, &["trun/broken", "trun/cats", "trun/long"]).await?;
        ensure!(list.starts_with("NAME "), "{list}");
        plugin.says("diagnose", 1, &["trun/broken", "2 resources have nothing to tell"]).await.map(|_| ())
    })
    .await
}

#[tokio::test]
async fn a_rollout_is_steered_asked_and_taken_back() -> Outcome {
    in_namespace(async |ns| {
        let plugin = Plugin::new(ns, "rollout")?;
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        plugin.says("compare first second", 0, &["hyperparameters.seed", "accuracy", "dataset", "sha256:"]).await?;

        // The first revision waits for a word, and gets it.
        ns.apply(&deployment("first", json!({}))).await?;
        let first = until_waits(ns).await?;
        plugin.says("status mdep/cats", 0, &["AwaitingApproval", "none yet: the Service leads nowhere", &first]).await?;
        plugin.says("diagnose cats", 0, &["waits for your word", "→ kubectl anneal approve cats"]).await?;
        plugin.says("predict cats /dev/null", 2, &["no revision of mdep/cats serves yet"]).await?;
        plugin.says("approve cats", 0, &[&format!("gives the traffic to revision {first}")]).await?;
        // A first revision has nothing to go back to, so there is no soak.
        plugin.says("status mdep/cats --watch", 0, &["Stable", &format!("revision {first} serves")]).await?;
        plugin.says("approve cats", 2, &["mdep/cats is Stable: no revision waits for a word"]).await?;
        plugin.says("diagnose cats", 0, &["nothing is wrong"]).await?;

        // It is asked through the API server.
        let folder = std::env::temp_dir().join(&ns.name);
        std::fs::create_dir_all(&folder)?;
        let cat = folder.join("cat.png");
        std::fs::write(&cat, BASE64_STANDARD.decode(ns.draw("cat").await?)?)?;
        let cat = cat.display().to_string();
        plugin.says(&format!("predict cats {cat}"), 0, &["FILE", "PREDICTION", "CONFIDENCE", &cat, &first]).await?;
        plugin.says(&format!("predict cats {cat} /no/such/file.png"), 1, &["/no/such/file.png: the file cannot be read"]).await?;
        plugin.says("predict cats /bin/true", 1, &["the answer is 4"]).await?;
        plugin.says("logs cats --tail 3", 0, &[&format!("mdep/cats, revision {first}")]).await?;
        plugin.says("logs cats --smoke", 0, &["the newest smoke test", "smoke-"]).await?;

        // The second one is promoted, taken back, and the model is followed again.
        ns.apply(&deployment("second", json!({}))).await?;
        let second = until_waits(ns).await?;
        let asked = plugin.says(&format!("predict cats {cat} --candidate -o json"), 0, &[&second]).await?;
        let asked: Value = serde_json::from_str(&asked)?;
        ensure!(asked[0]["revision"] == second.as_str(), "{asked}");
        plugin.says("promote cats", 0, &[&format!("gives the traffic to revision {second}")]).await?;
        let live = plugin.on_a_terminal("status mdep/cats --watch").await?;
        ensure!(live.contains("✔ Stable"), "the live picture does not end with Stable");
        plugin.says("rollout cats", 0, &["REVISION", "✔ stable", "○ former", "first", "second"]).await?;
        plugin.says("rollback cats", 0, &[&format!("goes back to revision {first}")]).await?;
        // Its pods are gone, so it passes the gate again, and this one asks a person.
        ensure!(until_waits(ns).await? == first, "another revision is on its way");
        plugin.says("approve cats", 0, &[&first]).await?;
        let back = |it: &ModelDeployment| stable_revision(it) == Some(&first);
        ns.watch::<ModelDeployment>("cats").until("the first serves again", PATIENCE, back).await?;
        until_stable(&mut ns.watch("cats")).await?;
        plugin.says("rollout cats", 0, &["pinned"]).await?;
        plugin.says("status mdep/cats", 0, &["Pinned:", &format!("{first}; `kubectl anneal unpin cats`")]).await?;
        plugin.says("unpin cats", 0, &["follows its model again"]).await?;

        // A rollout is ended, and tried again.
        let again = until_waits(ns).await?;
        ensure!(again == second, "{again} is on its way, {second} was unpinned");
        plugin.says("abort cats", 0, &[&format!("ends the rollout of revision {second}")]).await?;
        let rests = |it: &ModelDeployment| rollout(it) == Some(DeploymentPhase::Degraded);
        ns.watch::<ModelDeployment>("cats").until("it rests", PATIENCE, rests).await?;
        plugin.says("status mdep/cats --watch", 1, &["Degraded"]).await?;
        plugin.says("diagnose cats", 1, &["Aborted", "→ kubectl anneal retry cats"]).await?;
        plugin.says("retry cats", 0, &[&format!("tries revision {second} again")]).await?;
        until_waits(ns).await?;
        plugin.says("suspend cats", 0, &["goes no further with its rollout"]).await?;
        let paused = |it: &ModelDeployment| rollout(it) == Some(DeploymentPhase::Paused);
        ns.watch::<ModelDeployment>("cats").until("it is paused", PATIENCE, paused).await?;
        plugin.says("promote cats", 0, &["goes on with its rollout"]).await?;
        until_waits(ns).await?;
        plugin.says("approve cats", 0, &[]).await?;
        let moved = |it: &ModelDeployment| stable_revision(it) == Some(&second);
        ns.watch::<ModelDeployment>("cats").until("the second serves", PATIENCE, moved).await?;
        plugin.says("restart cats", 0, &["makes every pod anew"]).await?;
        ensure!(until_waits(ns).await? != second, "no new revision was made");

        // An autoscaler without metrics, a claim that is not there, a quota without room: told with what to do.
        let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}});
        ns.apply(&quota).await?;
        let mut other = deployment("first", json!({"gate": {"approval": "Automatic"}}));
        other["metadata"]["name"] = "crowded".into();
        ns.apply(&other).await?;
        let refused = |it: &ModelDeployment| {
            let conditions = it.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|it| it.reason == "QuotaExceeded")
        };
        ns.watch::<ModelDeployment>("crowded").until("its pods find no room", PATIENCE, refused).await?;
        plugin.says("diagnose mdep/crowded", 1, &["QuotaExceeded", "describe resourcequotas"]).await?;
        std::fs::remove_dir_all(folder)?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_cannot_be_done_is_told_in_a_sentence_and_words_are_completed() -> Outcome {
    in_namespace(async |ns| {
        let plugin = Plugin::new(ns, "sentences")?;
        // Without a claim nothing runs, and so costs nothing.
        ns.apply(&manifest::training_run("cats", json!({}))).await?;
        ns.apply(&deployment("cats", json!({}))).await?;
        ns.apply(&manifest::training_run("dogs", json!({}))).await?;
        plugin
            .says("status no-such", 2, &["there is no resource named no-such in namespace", "lists what there is"])
            .await?;
        plugin.says("logs cats", 2, &["more than one resource is named cats; write trun/cats or mdep/cats"]).await?;
        plugin.says("promote dogs", 2, &["dogs is a TrainingRun, and this command is for a ModelDeployment"]).await?;
        plugin.says("status pod/cats", 2, &["\"pod\" is none of Anneal's kinds"]).await?;
        plugin.says("status cats", 0, &["TrainingRun", "ModelDeployment"]).await?;
        let eve = "--as system:serviceaccount:default:default";
        plugin
            .says(&format!("status dogs {eve}"), 2, &["you may not do that:", "cannot get resource", "`edit`"])
            .await?;

        // Clusters that are not there.
        let config = std::env::temp_dir().join(format!("{}.kubeconfig", ns.name));
        let dead = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "dead", "users": [],
            "contexts": [{"name": "dead", "context": {"cluster": "dead", "user": ""}}],
            "clusters": [{"name": "dead", "cluster": {"server": "http://127.0.0.1:1"}}]
        });
        std::fs::write(&config, dead.to_string())?;
        let file = config.display();
        plugin
            .says(
                &format!("status --kubeconfig {file}"),
                2,
                &["the cluster at http://127.0.0.1:1 gives no answer: Connection refused"],
            )
            .await?;
        plugin
            .says(
                "status --context no-such",
                2,
                &["no kubeconfig can be used: failed to load current context: no-such"],
            )
            .await?;
        plugin.says("status --kubeconfig /no/such/file", 2, &["set KUBECONFIG, or say --kubeconfig FILE"]).await?;
        std::fs::remove_file(&config)?;

        // kubectl completes: commands, names of this cluster, options.
        let offered = async |words: &[&str]| {
            let said = ns.cluster.kubectl(&[&["__complete", "anneal"], words].concat()).await?.ok()?;
            plugin.keep(&format!("$ kubectl __complete anneal {}\n{}\n", words.join(" "), said.out))?;
            Ok::<_, anyhow::Error>(said.out)
        };
        let namespace = ns.name.as_str();
        for (words, line) in [
            (vec!["roll"], "rollback\t"),
            (vec!["status", "-n", namespace, ""], "dogs\tTrainingRun"),
            (vec!["status", "-n", namespace, ""], "mdep/cats\tModelDeployment"),
            (vec!["approve", "--namespace", namespace, "c"], "cats\n"),
            (vec!["status", "-n", "anneal-test-"], namespace),
            (vec!["logs", "dogs", "--fol"], "--follow\t"),
        ] {
            let said = offered(&words).await?;
            if !said.contains(line) {
                bail!("`kubectl anneal {}` is not completed with {line:?}: {said}", words.join(" "));
            }
        }
        let run: TrainingRun = ns.get("dogs").await?;
        ensure!(run.name_any() == "dogs" && !run.spec.suspend, "looking has changed something");
        Ok(())
    })
    .await
}
