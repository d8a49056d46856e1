//! The report as one HTML page that needs nothing beside itself.

use std::fmt::Write as _;

use anneal_figures::svg::escaped;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{Picture, Report, Trained};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}\
h1{font-size:1.6em;margin-bottom:0}h2{font-size:1.2em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.25em .9em .25em 0;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}\
img{max-width:100%;height:auto}figure{margin:1.5em 0}figcaption{color:#555}pre{background:#f5f5f5;padding:1em;overflow:auto}\
.numbers{display:flex;gap:2.5em;flex-wrap:wrap}.numbers b{display:block;font-size:1.7em}";

/// The page, with its pictures inside.
pub(super) fn page(report: &Report<'_>, metrics: &Value, pictures: &[Picture]) -> String {
    let name = escaped(report.name);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{name}</title><style>{STYLE}</style></head><body>\n<h1>{name}</h1>\n"
    );
    let confusion = &report.evaluation.confusion;
    // Writing to a String cannot fail.
    let _ = writeln!(
        page,
        "<p>{} of {} photos of the {} split were classified right.</p>",
        confusion.right(),
        confusion.total(),
        match report.split {
            crate::data::Split::Train => "whole",
            crate::data::Split::Validation => "validation",
            crate::data::Split::Test => "test",
        }
    );
    page += "<div class=\"numbers\">";
    let (low, high) = confusion.interval();
    let all = confusion.metrics();
    for (label, value) in [
        ("accuracy", percent(all.accuracy)),
        ("95 % interval", format!("{} to {}", percent(low), percent(high))),
        ("precision", percent(all.precision)),
        ("recall", percent(all.recall)),
        ("F1", percent(all.f1)),
        ("area under ROC", metrics["rocAuc"].as_f64().map_or_else(unknown, |area| format!("{area:.4}"))),
    ] {
        let _ = write!(page, "<div><b>{value}</b>{label}</div>");
    }
    page += "</div>\n<h2>Classes</h2>\n<table><tr><th>class</th><th>number</th><th>precision</th><th>recall</th><th>F1</th><th>photos</th></tr>\n";
    for (number, (class, of)) in (1..).zip(report.classes.iter().zip(confusion.by_class())) {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{number}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(class),
            percent(of.precision),
            percent(of.recall),
            percent(of.f1),
            of.support
        );
    }
    page += "</table>\n";
    for picture in pictures {
        let _ = writeln!(
            page,
            "<figure><img alt=\"{0}\" src=\"data:image/png;base64,{1}\"><figcaption>{0}</figcaption></figure>",
            picture.about,
            BASE64_STANDARD.encode(&picture.png)
        );
    }
    if let Some(trained) = report.training {
        page += &training(trained);
    }
    page + "</body></html>\n"
}

fn training(trained: Trained<'_>) -> String {
    let Trained { config, dataset, history, best_epoch, data_wait_share } = trained;
    let mut part = "<h2>Training</h2>\n<table>\n".to_owned();
    let photos = format!("{} / {} / {}", dataset.train.len(), dataset.validation.len(), dataset.test.len());
    for (label, value) in [
        ("dataset", config.dataset.shown()),
        ("digest of the dataset", dataset.identity.digest.clone()),
        ("photos of train / validation / test", photos),
        ("photos that were skipped", dataset.broken.len().to_string()),
        ("photos that lie in two splits", dataset.duplicates.len().to_string()),
        ("epochs", history.0.len().to_string()),
        ("best epoch", best_epoch.to_string()),
        ("share of the training in which the network waited for photos", data_wait_share.map_or_else(unknown, percent)),
    ] {
        let _ = writeln!(part, "<tr><td>{label}</td><td>{}</td></tr>", escaped(&value));
    }
    part += "</table>\n";
    let settings = json!({"model": config.model, "hyperparameters": config.hyperparameters});
    if let Ok(settings) = serde_yaml::to_string(&settings) {
        let lines = settings.lines().map(escaped).collect::<Vec<_>>().join("\n");
        let _ = writeln!(part, "<h2>Settings</h2>\n<pre>{lines}</pre>");
    }
    for (title, lines) in
        [("Photos that were skipped", &dataset.broken), ("Photos that lie in two splits", &dataset.duplicates)]
    {
        if !lines.is_empty() {
            let text = lines.iter().map(|line| escaped(line)).collect::<Vec<_>>().join("\n");
            let _ = writeln!(part, "<h2>{title}</h2>\n<pre>{text}</pre>");
        }
    }
    part
}

fn unknown() -> String {
    "–".to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
