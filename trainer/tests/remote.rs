//! Datasets at servers: a web server that breaks off, a real S3 server, and repositories of the real DVC.

#![allow(clippy::expect_used, reason = "all of this is test code")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod process;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::Duration,
};

use anneal_api::{failure::FailureClass, termination::RunResult};
use md5::{Digest, Md5};
use process::{
    Run, prints,
    tools::{Server, Web, free_port, tool, tools},
    trainer,
};

/// A configuration for one epoch of a dataset.
fn config(dataset: &str) -> String {
    format!(
        "model: {{inputSize: 32}}\ndataset: {{{dataset}}}\nhyperparameters: {{epochs: 1, batchSize: 16, threads: 1}}\n"
    )
}

fn train(uri: &str) -> RunResult {
    let run = Run::new(&config(&format!("uri: '{uri}'")));
    let result = run.train().succeeds();
    assert!(!run.path("out/dataset").exists(), "the downloads of a run that is done are left");
    result
}

/// Pictures in folders, and a tar of them.
fn pictures(dir: &Path) -> PathBuf {
    let set = dir.join("set");
    prints(&["synthesize", "--output", text(&set), "--images", "40", "--size", "32"]);
    let mut tar = tar::Builder::new(fs::File::create(dir.join("set.tar")).expect("a file"));
    tar.append_dir_all("photos", &set).expect("a tar");
    tar.finish().expect("a tar");
    set
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn a_download_goes_on_where_it_broke_off_and_digests_are_compared() {
    let dir = tempfile::tempdir().expect("a folder");
    let set = pictures(dir.path());
    let bytes = fs::metadata(dir.path().join("set.tar")).expect("a tar").len();
    let third = usize::try_from(bytes / 3).expect("a size");
    let web = Web::start(dir.path(), 2, third);
    let uri = format!("http://{}/set.tar?signature=secret", web.address);

    let digest = train(&format!("file://{}", set.display())).dataset.digest;
    let asked = config(&format!("uri: '{uri}', digest: '{digest}'"));
    let run = Run::new(&asked);
    let mut child = run.train().spawn();
    let warning = child.wait_for_line("cannot be fetched");
    assert!(!warning.contains("secret"), "{warning}");
    assert_eq!(child.succeeds().dataset.digest, digest);
    assert_eq!(web.sent.load(Ordering::SeqCst), bytes, "bytes were sent twice");

    let other = digest.replace(&digest[7..9], if digest[7..9] == *"00" { "11" } else { "00" });
    let asked = config(&format!("uri: '{uri}', digest: '{other}'"));
    Run::new(&asked).train().fails_as(FailureClass::DataCorrupt, "dataset.digest asks for");
    let asked = config(&format!("uri: 'http://{}/nowhere.tar'", web.address));
    Run::new(&asked).train().fails_as(FailureClass::DataMissing, "does not exist");
}

#[test]
fn the_next_attempt_fetches_a_tar_only_if_it_has_changed() {
    let dir = tempfile::tempdir().expect("a folder");
    pictures(dir.path());
    let tar = dir.path().join("set.tar");
    let web = Web::start(dir.path(), 0, usize::MAX);
    let run = Run::new(&config(&format!("uri: 'http://{}/set.tar'", web.address)).replace("epochs: 1", "epochs: 9000"));
    let attempt = || {
        let mut child = run.train().spawn();
        child.wait_for_line("dataset loaded");
        child.kill();
        web.sent.load(Ordering::SeqCst)
    };
    let bytes = fs::metadata(&tar).expect("a tar").len();
    assert_eq!((attempt(), attempt()), (bytes, bytes));
    // More blocks at its end make another file of the same photos.
    let content = [fs::read(&tar).expect("a tar"), vec![0; 10_240]].concat();
    fs::write(&tar, &content).expect("a tar");
    assert!(attempt() >= bytes + content.len() as u64);
    let downloads: Vec<_> = fs::read_dir(run.path("out/dataset")).expect("downloads").flatten().collect();
    assert_eq!(downloads.len(), 2, "{downloads:?}");
}

#[test]
fn the_signature_of_a_url_is_told_to_nobody() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut tar = tar::Builder::new(fs::File::create(dir.path().join("set.tar")).expect("a file"));
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    tar.append_data(&mut header, "notes.txt", &b"text"[..]).expect("an entry");
    tar.finish().expect("a tar");
    let web = Web::start(dir.path(), 0, usize::MAX);
    let run = Run::new(&config(&format!("uri: 'http://{}/set.tar?X-Amz-Signature=topsecret'", web.address)));
    let mut child = run.train().spawn();
    let line = child.wait_for_line("holds no photo");
    let failure = child.fails_as(FailureClass::DataMissing, "/set.tar");
    assert!(!line.contains("topsecret") && !failure.message.contains("topsecret"), "{line}\n{failure:?}");
}

#[test]
fn a_run_moves_for_whoever_watches_it_while_it_downloads() {
    let dir = tempfile::tempdir().expect("a folder");
    pictures(dir.path());
    let bytes = fs::metadata(dir.path().join("set.tar")).expect("a tar").len();
    let piece = usize::try_from(bytes / 600).expect("a size");
    let web = Web::slow(dir.path(), piece, Duration::from_millis(100));
    let run = Run::new(&config(&format!("uri: 'http://{}/set.tar'", web.address)));
    let mut child = run.train().args(["--progress-address", "127.0.0.1:0"]).spawn();
    let address = child.address();
    child.moves_while(&address, "it downloads", 2, |progress| progress.steps == 0);
    child.kill();
}

#[test]
fn what_a_web_server_keeps_secret_takes_a_header() {
    let dir = tempfile::tempdir().expect("a folder");
    pictures(dir.path());
    fs::create_dir(dir.path().join("secret")).expect("a folder");
    fs::rename(dir.path().join("set.tar"), dir.path().join("secret/set.tar")).expect("a file");
    let web = Web::start(dir.path(), 0, usize::MAX);
    let run = Run::new(&config(&format!("uri: 'http://{}/secret/set.tar'", web.address)));
    run.train().fails_as(FailureClass::BadConfig, "credentialsSecretRef");
    run.train().envs([("ANNEAL_HTTP_AUTHORIZATION", "Bearer letmein")]).succeeds();
}

#[test]
fn a_bucket_that_is_refused_or_is_not_there_is_named_with_the_servers_answer() {
    let dir = tempfile::tempdir().expect("a folder");
    let web = Web::start(dir.path(), 0, usize::MAX);
    let run = Run::new(&config("uri: 's3://photos/set'"));
    let at = |path: &str| {
        let keys = [("AWS_ACCESS_KEY_ID", "someone"), ("AWS_SECRET_ACCESS_KEY", "something"), ("AWS_REGION", "eu")];
        run.train().envs(keys).env("AWS_ENDPOINT_URL", &format!("http://{}{path}", web.address))
    };
    let refused = at("/secret").fails_as(FailureClass::BadConfig, "credentialsSecretRef");
    assert!(refused.message.contains("s3://photos/set is refused (403 Forbidden)"), "{refused:?}");
    let missing = at("").fails_as(FailureClass::DataMissing, "credentialsSecretRef");
    assert!(missing.message.contains("the bucket s3://photos/ does not exist (404 Not Found)"), "{missing:?}");
}

#[test]
fn a_checkpoint_is_fetched_over_a_line_that_breaks_off_and_another_file_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("secret")).expect("a folder");
    let content: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    fs::write(dir.path().join("secret/model.pth"), &content).expect("a file");
    let digest = anneal_api::Sha256::from_bytes(sha2::Sha256::digest(&content).into());
    let web = Web::start(dir.path(), 2, 100_000);
    let uri = |name: &str| format!("http://{}/secret/{name}", web.address);
    let to = dir.path().join("fetched.pth");
    let fetch = |name: &str, sha256: &str, authorization: &str| {
        let mut command = trainer(["fetch", &uri(name), "--sha256", sha256, "--to", text(&to)]);
        command.env("ANNEAL_HTTP_AUTHORIZATION", authorization).env("ANNEAL_TERMINATION_LOG", dir.path().join("log"));
        let done = command.output().expect("the trainer runs");
        (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
    };

    let (code, said) = fetch("model.pth", digest.as_str(), "");
    assert_eq!(code, Some(FailureClass::BadConfig.exit_code()), "{said}");
    assert!(said.contains("credentialsSecretRef") && !to.exists(), "{said}");

    let (code, said) = fetch("nowhere.pth", digest.as_str(), "Bearer letmein");
    assert_eq!(code, Some(FailureClass::ModelNotFound.exit_code()), "{said}");

    let (code, said) = fetch("model.pth", &"0".repeat(64), "Bearer letmein");
    assert_eq!(code, Some(FailureClass::DigestMismatch.exit_code()), "{said}");
    let left = fs::read_to_string(dir.path().join("log")).expect("a termination message");
    assert!(left.contains("DigestMismatch") && left.contains(digest.as_str()) && !to.exists(), "{left}");

    let (code, said) = fetch("model.pth", digest.as_str(), "Bearer letmein");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read(&to).expect("the checkpoint"), content);
    let sent = web.sent.load(Ordering::SeqCst);
    assert_eq!(fetch("model.pth", digest.as_str(), "Bearer letmein").0, Some(0));
    assert_eq!(web.sent.load(Ordering::SeqCst), sent, "what was there was fetched again");
}

/// A repository in `repo`, made by the real DVC, with its remote in `store`.
fn repository(dir: &Path) -> PathBuf {
    let set = pictures(dir);
    let repo = dir.join("repo");
    fs::create_dir(&repo).expect("a folder");
    for split in ["train", "val", "test"] {
        fs::rename(set.join(split), repo.join(split)).expect("a split");
    }
    tool("dvc", &["init", "--no-scm", "--quiet"], &repo);
    tool("dvc", &["remote", "add", "--quiet", "--default", "storage", "../store"], &repo);
    tool("dvc", &["add", "--quiet", "train", "val", "test"], &repo);
    tool("dvc", &["push", "--quiet"], &repo);
    repo
}

#[test]
fn what_dvc_pushed_is_read_in_both_layouts_and_verified() {
    let dir = tempfile::tempdir().expect("a folder");
    let repo = repository(dir.path());
    let digest = train(&format!("file://{}", repo.display())).dataset.digest;
    assert_eq!(train(&format!("dvc+file://{}", repo.display())).dataset.digest, digest);

    // From another machine the same path is a URL.
    let web = Web::start(dir.path(), 0, usize::MAX);
    let uri = format!("dvc+http://{}/repo", web.address);
    assert_eq!(train(&uri).dataset.digest, digest);

    // The MD5 that a .dvc file names can be asked for.
    let named = fs::read_to_string(repo.join("train.dvc")).expect("a file");
    let md5 = named.lines().find_map(|line| line.strip_prefix("- md5: ")).expect("an MD5").to_owned();
    let one = |digest: &str| config(&format!("uri: '{uri}/train.dvc', digest: 'md5:{digest}'"));
    Run::new(&one(&md5)).train().succeeds();
    let other = md5.replace(|c: char| c.is_ascii_digit(), "0");
    Run::new(&one(&other)).train().fails_as(FailureClass::DataCorrupt, &md5);

    // As DVC 2 wrote it: no word of the hash, and another layout of the remote.
    let store = dir.path().join("store");
    for entry in fs::read_dir(store.join("files/md5")).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::rename(entry.path(), store.join(entry.file_name())).expect("a rename");
    }
    for split in ["train", "val", "test"] {
        let file = repo.join(format!("{split}.dvc"));
        let older = fs::read_to_string(&file).expect("a file").replace("  hash: md5\n", "");
        fs::write(&file, older).expect("a file");
    }
    assert_eq!(train(&uri).dataset.digest, digest);
    // The real DVC takes it for the same.
    fs::remove_dir_all(repo.join(".dvc/cache")).expect("a cache");
    tool("dvc", &["fetch", "--quiet"], &repo);

    // A photo that changed in the remote.
    let object = store.join(&md5[..2]).join(&md5[2..]);
    let listed = fs::read_to_string(&object).expect("a list");
    let first = listed.split("\"md5\": \"").nth(1).expect("a photo")[..32].to_owned();
    let photo = store.join(&first[..2]).join(&first[2..]);
    fs::remove_file(&photo).expect("a photo");
    fs::write(&photo, "something else").expect("a file");
    Run::new(&one(&md5)).train().fails_as(FailureClass::DataCorrupt, "MD5");
    fs::remove_file(&photo).expect("a photo");
    Run::new(&one(&md5)).train().fails_as(FailureClass::DataMissing, "does not exist");
}

#[test]
fn a_dvc_list_that_leaves_its_folder_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("repo/.dvc")).expect("a folder");
    fs::write(path("repo/.dvc/config"), "[core]\nremote = s\n['remote \"s\"']\nurl = ../../store\n").expect("a file");
    let list = r#"[{"md5": "d41d8cd98f00b204e9800998ecf8427e", "relpath": "../../cat/a.jpg"}]"#;
    let digest = Md5::digest(list).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let object = path("store/files/md5").join(&digest[..2]);
    fs::create_dir_all(&object).expect("a folder");
    fs::write(object.join(format!("{}.dir", &digest[2..])), list).expect("a file");
    let file = format!("outs:\n- md5: {digest}.dir\n  hash: md5\n  path: photos\n");
    fs::write(path("repo/photos.dvc"), file).expect("a file");
    let uri = format!("uri: 'dvc+file://{}'", path("repo/photos.dvc").display());
    Run::new(&config(&uri)).train().fails_as(FailureClass::DataCorrupt, "leaves the folder");
}

#[test]
fn an_s3_server_gives_tars_folders_and_what_dvc_pushed_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let repo = repository(dir.path());
    let (port, root) = (free_port(), dir.path().join("s3"));
    fs::create_dir_all(root.join("photos/dvc")).expect("a folder");
    let copied = Command::new("cp").arg("-r").arg(&repo).arg(root.join("photos/set")).status().expect("cp");
    assert!(copied.success());
    fs::copy(dir.path().join("set.tar"), root.join("photos/set.tar")).expect("a copy");
    let mut command = Command::new(tools().join("versitygw"));
    command.args(["--access", "someone", "--secret", "something", "--quiet", "--port", &format!("127.0.0.1:{port}")]);
    command.arg("posix").arg(&root);
    let _server = Server::start(command, port);
    let endpoint = format!("http://127.0.0.1:{port}");
    let run = |uri: &str| Run::new(&config(&format!("uri: '{uri}'")));
    let keys = |secret| {
        let (endpoint, region) = (endpoint.as_str(), "us-east-1");
        let [id, key] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        [(id, "someone"), (key, secret), ("AWS_ENDPOINT_URL", endpoint), ("AWS_REGION", region)]
    };
    let fetch = |uri: &str| run(uri).train().envs(keys("something")).succeeds().dataset.digest;
    let digest = train(&format!("file://{}", repo.display())).dataset.digest;
    assert_eq!(fetch("s3://photos/set.tar"), digest);
    assert_eq!(fetch("s3://photos/set"), digest);

    // The endpoint comes from DVC's own configuration, the keys from a file as AWS's tools keep them.
    tool("dvc", &["remote", "add", "--quiet", "--default", "bucket", "s3://photos/dvc"], &repo);
    for (key, value) in [("endpointurl", endpoint.as_str()), ("region", "us-east-1")] {
        tool("dvc", &["remote", "modify", "--quiet", "bucket", key, value], &repo);
    }
    for (key, value) in [("access_key_id", "someone"), ("secret_access_key", "something")] {
        tool("dvc", &["remote", "modify", "--quiet", "--local", "bucket", key, value], &repo);
    }
    tool("dvc", &["push", "--quiet"], &repo);
    fs::remove_file(repo.join(".dvc/config.local")).expect("a file");
    let credentials = dir.path().join("credentials");
    fs::write(&credentials, "[default]\naws_access_key_id = someone\naws_secret_access_key = something\n")
        .expect("a file");
    let from_dvc = run(&format!("dvc+file://{}", repo.display()));
    let credentials = [("AWS_SHARED_CREDENTIALS_FILE", &credentials)];
    assert_eq!(from_dvc.train().envs(credentials).succeeds().dataset.digest, digest);

    let refused = run("s3://photos/set.tar");
    refused.train().envs(keys("a wrong one")).fails_as(FailureClass::BadConfig, "credentialsSecretRef");
    let missing = run("s3://photos/nowhere.tar");
    missing.train().envs(keys("something")).fails_as(FailureClass::DataMissing, "does not exist");
    let listed = run("s3://photos/set");
    listed
        .train()
        .envs(keys("a wrong one"))
        .fails_as(FailureClass::BadConfig, "(403 Forbidden, SignatureDoesNotMatch)");
    let (nowhere, none) = (run("s3://nowhere/set"), "s3://nowhere/ does not exist (404 Not Found, NoSuchBucket)");
    nowhere.train().envs(keys("something")).fails_as(FailureClass::DataMissing, none);
}
