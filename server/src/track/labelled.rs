//! Photos with their classes: a folder with a folder for each class, or a CSV.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// Endings of files that are photos.
const PHOTOS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// A photo and its class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Labelled {
    /// The class.
    pub(super) class: String,
    /// The photo.
    pub(super) file: PathBuf,
}

/// There are no labelled photos.
#[derive(Debug, thiserror::Error)]
pub(super) enum LabelError {
    #[error("{} cannot be read: {why}", path.display())]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{} is no list of photos ({why}); its first line must name the columns file and class", path.display())]
    Csv { path: PathBuf, why: csv::Error },
    #[error("{} has no photos; name a folder with a folder of photos for each class, or a CSV with the columns file and class", .0.display())]
    None(PathBuf),
}

/// The photos of a folder or CSV, in the order of classes and names.
pub(super) fn read(path: &Path) -> Result<Vec<Labelled>, LabelError> {
    let mut photos = if path.is_dir() { folders(path)? } else { list(path)? };
    photos.sort();
    if photos.is_empty() { Err(LabelError::None(path.to_owned())) } else { Ok(photos) }
}

fn folders(root: &Path) -> Result<Vec<Labelled>, LabelError> {
    let mut photos = Vec::new();
    for folder in entries(root)?.into_iter().filter(|entry| entry.is_dir()) {
        let Some(class) = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        let files = entries(&folder)?.into_iter().filter(|file| is_photo(file));
        photos.extend(files.map(|file| Labelled { class: class.clone(), file }));
    }
    Ok(photos)
}

/// What is in a folder and not hidden. A mounted `ConfigMap` has hidden folders, with every file once more.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, LabelError> {
    let unreadable = |why| LabelError::Unreadable { path: folder.to_owned(), why };
    let all: Result<Vec<PathBuf>, _> =
        fs::read_dir(folder).map_err(unreadable)?.map(|entry| entry.map(|entry| entry.path())).collect();
    let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    Ok(all.map_err(unreadable)?.into_iter().filter(|path| !hidden(path)).collect())
}

fn is_photo(file: &Path) -> bool {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    PHOTOS.iter().any(|photo| photo.eq_ignore_ascii_case(ending))
}

fn list(path: &Path) -> Result<Vec<Labelled>, LabelError> {
    let content = fs::read(path).map_err(|why| LabelError::Unreadable { path: path.to_owned(), why })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let rows: Result<Vec<Labelled>, csv::Error> =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(content.as_slice()).deserialize().collect();
    let rows = rows.map_err(|why| LabelError::Csv { path: path.to_owned(), why })?;
    Ok(rows.into_iter().map(|row| Labelled { file: folder.join(&row.file), ..row }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, "").expect("a file");
        }
        dir
    }

    fn names(path: &Path) -> Vec<(String, String)> {
        let photos = read(path).expect("photos");
        let name = |photo: Labelled| photo.file.file_name().expect("a name").to_string_lossy().into_owned();
        photos.into_iter().map(|photo| (photo.class.clone(), name(photo))).collect()
    }

    #[test]
    fn a_folder_is_a_class_and_what_is_hidden_or_no_photo_is_left_out() {
        let dir = folder(&["dog/b.JPG", "cat/a.png", "cat/notes.txt", "..data/cat/a.png", "top.png"]);
        let found = [("cat", "a.png"), ("dog", "b.JPG")].map(|(class, name)| (class.to_owned(), name.to_owned()));
        assert_eq!(names(dir.path()), found);
    }

    #[test]
    fn a_csv_names_files_from_its_own_folder() {
        let dir = folder(&["list.csv"]);
        let list = dir.path().join("list.csv");
        fs::write(&list, "class,file\ncat, photos/a.png\n\"dog\",/b.png\n").expect("a file");
        let photos = read(&list).expect("photos");
        assert_eq!(photos[0], Labelled { class: "cat".to_owned(), file: dir.path().join("photos/a.png") });
        assert_eq!(photos[1].file, Path::new("/b.png"));

        fs::write(&list, "name,label\na.png,cat\n").expect("a file");
        let said = read(&list).expect_err("no columns").to_string();
        assert!(said.contains("must name the columns file and class"), "{said}");
    }

    #[test]
    fn what_has_no_photos_says_what_is_wanted() {
        let said = read(folder(&["cat/notes.txt"]).path()).expect_err("no photos").to_string();
        assert!(said.contains("a folder of photos for each class"), "{said}");
        assert!(matches!(read(Path::new("/nowhere")), Err(LabelError::Unreadable { .. })));
    }
}
