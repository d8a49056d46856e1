//! The clients that a cluster without a shell needs: predict and load.

use std::{fs, fs::File};

use tempfile::NamedTempFile;

use crate::{
    process::{Server, binary, dogs, finish, picture_file},
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
