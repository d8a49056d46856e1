//! The clients that a cluster without a shell needs: predict, track and load.

use std::{fs, fs::File, path::Path, process::Output};

use tempfile::NamedTempFile;

use crate::{
    process::{Server, binary, dogs, finish, picture, picture_file},
    startup::pipe,
    wire::get,
};

#[test]
fn predict_prints_a_table_and_tells_which_file_failed() {
    let server = Server::ready(dogs(), |_| {});
    let (image, text) = (picture_file(), NamedTempFile::with_suffix("notes.txt").expect("a file"));
    fs::write(&text, "no image").expect("a file");
    let url = format!("{}/predict", server.url());

    let mut command = binary();
    command.args(["predict", "--url", &url, "-"]).arg(image.path()).stdin(File::open(&image).expect("a file"));
    let (output, _) = finish(command);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["FILE", "PREDICTION", "CONFIDENCE", "MS"]);
    assert_eq!((lines[1][0], lines[1][1], lines[2][1]), ("-", "dog", "dog"), "{table}");

    let mut command = binary();
    command.args(["predict", "--url", &url]).arg(text.path());
    let (output, _) = finish(command);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("notes.txt: the answer is 400"), "{errors}");
}

#[test]
fn a_health_check_tells_a_ready_server_from_one_that_loads_and_from_none_and_asks_for_no_prediction() {
    let check = |url: &str| {
        let mut command = binary();
        command.args(["healthcheck", "--url", url]);
        let (output, _) = finish(command);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let server = Server::ready(dogs(), |_| {});
    assert_eq!(check(&format!("{}/", server.url())), (Some(0), String::new()));
    let metrics = server.ask(&get("/metrics")).text();
    let predictions = |line: &str| line.starts_with("predictions_total{") && !line.ends_with(" 0");
    assert!(!metrics.lines().any(predictions), "{metrics}");

    let dir = tempfile::tempdir().expect("a folder");
    let loading = Server::start(&pipe(dir.path()), |_| {});
    let (code, said) = check(&loading.url());
    assert!(code == Some(1) && said.contains("503") && said.contains("the model is being loaded"), "{code:?}: {said}");
    let (code, said) = check("http://127.0.0.1:9");
    assert!(code == Some(1) && said.contains("nobody listens there"), "{code:?}: {said}");
}

fn track(server: &Server, reports: &Path, photos: &Path, more: &[&str]) -> Output {
    let mut command = binary();
    command.args(["track", "--url", &server.url(), "--reports"]).arg(reports).args(more).arg(photos);
    finish(command).0
}

#[test]
fn track_measures_labelled_photos_and_keeps_the_history() {
    let server = Server::ready(dogs(), |command| {
        command.args(["--revision", "e300d319"]);
    });
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    for class in ["cat", "dog"] {
        fs::create_dir_all(path("photos").join(class)).expect("a folder");
        for name in ["a.png", "b.png"] {
            fs::write(path("photos").join(class).join(name), picture()).expect("a file");
        }
    }
    let done = track(&server, &path("reports"), &path("photos"), &[]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let table = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        table.contains("cat    2       0        0.0000") && table.contains("all    4       2        0.5000"),
        "{table}"
    );
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(path("reports/performance.json")).expect("a report")).expect("JSON");
    assert_eq!((&report["total"], &report["correct"], &report["accuracy"]), (&4.into(), &2.into(), &0.5.into()));
    assert_eq!(report["by_class"]["dog"]["accuracy"], 1.0, "{report}");
    assert_eq!(report["revisions"], serde_json::json!(["e300d319"]));
    assert!(report["mean_confidence"].as_f64().is_some_and(|confidence| confidence > 0.5), "{report}");
    for picture in ["performance.png", "confusion_matrix.png"] {
        image::load_from_memory(&fs::read(path("reports").join(picture)).expect("a picture")).expect("a PNG");
    }

    // The same photos as a list, one of them lost, and a bound that this model misses.
    fs::write(path("list.csv"), "file,class\nphotos/cat/a.png,cat\nphotos/dog/a.png,dog\nphotos/lost.png,dog\n")
        .expect("a file");
    let done = track(&server, &path("reports"), &path("list.csv"), &["--min-accuracy", "0.9"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let (said, table) = (String::from_utf8_lossy(&done.stderr), String::from_utf8_lossy(&done.stdout));
    assert!(said.contains("below --min-accuracy 0.9") && table.contains("lost.png cannot be read"), "{said}{table}");
    let history = fs::read_to_string(path("reports/history.jsonl")).expect("a history");
    assert_eq!(history.lines().count(), 2, "{history}");

    // Classes that the server does not have, and a server that is not there.
    fs::rename(path("photos/cat"), path("photos/lynx")).expect("a folder");
    let done = track(&server, &path("reports"), &path("photos"), &[]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        done.status.code() == Some(2) && said.contains("does not know the class") && said.contains("cat, dog"),
        "{said}"
    );
    drop(server);
    let mut command = binary();
    command.args(["track", "--url", "http://127.0.0.1:1", "--timeout", "100ms"]).arg(path("photos"));
    command.current_dir(dir.path());
    let (done, _) = finish(command);
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert_eq!(fs::read_to_string(path("reports/history.jsonl")).expect("a history"), history, "it was added to");
}

#[test]
fn tune_remembers_what_is_fastest_and_serve_takes_it() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut command = binary();
    command.args(["tune", "--seconds", "100ms", "--checkpoint"]).arg(dogs()).arg("--tuning").arg(folder.path());
    let (output, _) = finish(command);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.starts_with("WORKERS  BATCH  IMAGES/S") && table.contains("best"), "{table}");

    // A number that no default gives.
    let entry = fs::read_dir(folder.path()).expect("a folder").next().expect("a file").expect("an entry").path();
    let text = fs::read_to_string(&entry).expect("text");
    let mut remembered: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    remembered["setting"]["workers"] = 3.into();
    fs::write(&entry, remembered.to_string()).expect("written");
    let workers = |more: &[&str]| {
        let server = Server::ready_as_is(dogs(), |command| {
            command.arg("--tuning").arg(folder.path()).args(more);
        });
        server.ask(&get("/metrics")).text();
        server.ask(&get("/model/info")).json()["workers"].clone()
    };
    assert_eq!(workers(&[]), 3);
    assert_eq!(workers(&["--workers", "1"]), 1, "what is asked for comes first");
}

#[test]
fn load_ends_by_itself_and_counts() {
    let server = Server::ready(dogs(), |_| {});
    let mut command = binary();
    command.args(["load", "--url", &format!("{}/predict", server.url()), "--concurrency", "2", "--duration", "500ms"]);
    let (output, _) = finish(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text.starts_with("requests ") && text.contains("errors 0") && text.contains("p99"), "{text}");

    let image = picture_file();
    let mut command = binary();
    command.args(["load", "--url", &server.url(), "--duration", "300ms", "--json", "--image"]).arg(image.path());
    let (output, _) = finish(command);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(result["predictions"].as_u64().is_some_and(|count| count > 0), "{result}");
    assert_eq!(result["errors"], 0, "{result}");
}
