//! The configuration of a run: read, overridden by the environment, and checked before anything else happens.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anneal_api::{
    Sha256,
    config::{CheckpointInterval, InitFrom, OutputDirs, TrainerConfig},
    dataset::{DatasetUri, DatasetUriError},
    hyperparameters::Hyperparameters,
    model::{Architecture, ModelSpec},
    tracking::Mlflow,
};
use sha2::{Digest, Sha256 as Hasher};

/// What a configuration consists of: the name of its type says nothing to whoever writes one.
const EXAMPLE: &str = "fields, such as `dataset: {uri: \"synthetic://\"}`";

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path:?} cannot be read: {source}; name a YAML file")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {path:?} cannot be used: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// A number is out of range.
    #[error("{field} is {value}; it must be between {low} and {high}")]
    Range {
        /// The field, as in the file.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The least value.
        low: f64,
        /// The greatest value.
        high: f64,
    },
    /// The architecture takes another input size.
    #[error("model.inputSize is {0}; architecture simple takes 224 only, architecture improved takes 32 to 1024")]
    InputSize(i32),
    /// The architecture takes one size only.
    #[error(
        "hyperparameters.trainSizes has {0}; architecture simple takes 224 only, architecture improved takes 32 to 1024"
    )]
    TrainSize(i32),
    /// A list without entries.
    #[error("hyperparameters.trainSizes is empty; name a size, or leave it out to train at model.inputSize")]
    NoTrainSize,
    /// The dataset's URI is none.
    #[error(transparent)]
    Dataset(#[from] DatasetUriError),
    /// The digest of the dataset is none.
    #[error(
        "dataset.digest {0:?} is no digest; write sha256: and the 64 digits that a run's result shows, or, for a dvc+ URI, \
         md5: and what the .dvc file names"
    )]
    Digest(String),
    /// The tracking server is none.
    #[error("tracking.mlflow: {0}")]
    Tracking(String),
    /// A directory already belongs to a run of another kind.
    #[error("{dir:?} holds checkpoints of another run: {differs}; choose another output directory or remove that one")]
    AnotherRun {
        /// The directory.
        dir: PathBuf,
        /// What differs.
        differs: String,
    },
}

/// What wins over the configuration file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Name of the run.
    pub name: Option<String>,
    /// Directory of the run.
    pub output: Option<PathBuf>,
    /// Directory of published models.
    pub models: Option<PathBuf>,
    /// Directory of the checkpoints to go on from.
    pub resume_from: Option<PathBuf>,
}

/// A configuration that was checked. Only [`read`] makes one.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Name of the run.
    pub name: String,
    /// The network.
    pub model: ModelSpec,
    /// Where the dataset is.
    pub dataset: DatasetUri,
    /// What its digest must be.
    pub digest: Option<String>,
    /// How to train.
    pub hyperparameters: Hyperparameters,
    /// Where the run is recorded beside its own directory.
    pub tracking: Option<Mlflow>,
    /// Directory of the run.
    pub output: PathBuf,
    /// Directory of published models.
    pub models: PathBuf,
    /// Directory of the checkpoints to go on from, where it is not the run's own.
    pub resume_from: Option<PathBuf>,
    /// How often to write a checkpoint.
    pub interval: CheckpointInterval,
    /// What to begin with instead of random weights.
    pub init_from: Option<InitFrom>,
    /// Digest of the configuration file.
    pub sha256: Sha256,
}

impl RunConfig {
    /// Directory of the run's own checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.output.join("checkpoints")
    }

    /// Directory of the run's reports.
    pub fn reports(&self) -> PathBuf {
        self.output.join("reports")
    }

    /// Directory of what is downloaded of the dataset, until the run is done.
    pub fn downloads(&self) -> PathBuf {
        self.output.join("dataset")
    }

    /// Side of the network's input in pixels.
    pub fn input_size(&self) -> usize {
        usize::try_from(self.model.input_size).unwrap_or_default()
    }

    /// Side of the training images of an epoch, counted from 0, in pixels.
    pub fn train_size(&self, epoch: u32) -> usize {
        let epochs = self.hyperparameters.epochs.unsigned_abs().max(1) as usize;
        let sizes = self.hyperparameters.train_sizes.as_deref().unwrap_or_default();
        let at = (epoch as usize * sizes.len() / epochs).min(sizes.len().saturating_sub(1));
        sizes.get(at).and_then(|size| usize::try_from(*size).ok()).unwrap_or_else(|| self.input_size())
    }

    /// The seed of every random draw.
    pub fn seed(&self) -> u64 {
        self.hyperparameters.seed.unsigned_abs()
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// When the file cannot be read, has an unknown or malformed field, or a value out of range.
pub fn read(path: &PathBuf, overrides: Overrides) -> Result<RunConfig, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
    parse(&text, path, overrides)
}

/// Checks the text of a configuration file; `path` is its name in messages.
///
/// # Errors
/// When it has an unknown or malformed field, or a value out of range.
pub fn parse(text: &str, path: &Path, overrides: Overrides) -> Result<RunConfig, ConfigError> {
    let config = fields(text).map_err(|problem| ConfigError::Malformed { path: path.to_owned(), problem })?;
    check(config, overrides, Sha256::from_bytes(Hasher::digest(text).into()))
}

fn fields(text: &str) -> Result<TrainerConfig, String> {
    let mut unknown = Vec::new();
    let reader = serde_yaml::Deserializer::from_str(text);
    let config: TrainerConfig = serde_ignored::deserialize(reader, |field| unknown.push(field.to_string()))
        .map_err(|error| error.to_string().replace("struct TrainerConfig", EXAMPLE))?;
    match unknown.first() {
        Some(field) => Err(format!("unknown field `{field}`, expected one of {}", siblings(&config, field))),
        None => Ok(config),
    }
}

/// The fields that stand where `field` (a path with dots) stands.
fn siblings(config: &TrainerConfig, field: &str) -> String {
    let mut place = serde_json::to_value(config).unwrap_or_default();
    let parents = field.rsplit_once('.').map_or("", |(parents, _)| parents);
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        place = place.get_mut(parent).map(serde_json::Value::take).unwrap_or_default();
    }
    let names = place.as_object().into_iter().flat_map(|fields| fields.keys());
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn check(config: TrainerConfig, overrides: Overrides, sha256: Sha256) -> Result<RunConfig, ConfigError> {
    let TrainerConfig { name, model, dataset, hyperparameters, tracking, output, checkpoints: interval, init_from } =
        config;
    check_numbers(&hyperparameters)?;
    check_interval(interval)?;
    let takes = |size: i32| match model.architecture {
        Architecture::Simple => size == 224,
        Architecture::Improved => (32..=1024).contains(&size),
    };
    if !takes(model.input_size) {
        return Err(ConfigError::InputSize(model.input_size));
    }
    match &hyperparameters.train_sizes {
        Some(sizes) if sizes.is_empty() => return Err(ConfigError::NoTrainSize),
        Some(sizes) => {
            sizes.iter().find(|size| !takes(**size)).map_or(Ok(()), |size| Err(ConfigError::TrainSize(*size)))?;
        }
        None => {}
    }
    let models = overrides.models.unwrap_or_else(|| match &overrides.output {
        // Whoever moves the run's directory has not asked for models elsewhere, unless the file says where.
        Some(dir) if output.models_dir == OutputDirs::default().models_dir => dir.join("models"),
        _ => PathBuf::from(output.models_dir),
    });
    let tracking = tracking.and_then(|tracking| tracking.mlflow);
    if let Some(mlflow) = &tracking {
        mlflow.check().map_err(ConfigError::Tracking)?;
    }
    let uri: DatasetUri = dataset.uri.parse()?;
    if let Some(digest) = dataset.digest.as_ref().filter(|digest| !is_digest(digest, &uri)) {
        return Err(ConfigError::Digest(digest.clone()));
    }
    Ok(RunConfig {
        name: overrides.name.unwrap_or(name),
        model,
        dataset: uri,
        digest: dataset.digest,
        hyperparameters,
        tracking,
        output: overrides.output.unwrap_or_else(|| PathBuf::from(output.dir)),
        models,
        resume_from: overrides.resume_from,
        interval,
        init_from,
        sha256,
    })
}

fn check_interval(interval: CheckpointInterval) -> Result<(), ConfigError> {
    let within = |field, value: f64, high: f64| {
        if (1.0..=high).contains(&value) { Ok(()) } else { Err(ConfigError::Range { field, value, low: 1.0, high }) }
    };
    within("checkpoints.intervalSeconds", f64::from(interval.interval_seconds), 86_400.0)?;
    #[expect(clippy::cast_precision_loss, reason = "a number beyond 2^53 is out of range anyway")]
    let steps = interval.interval_steps.map_or(1.0, |steps| steps as f64);
    within("checkpoints.intervalSteps", steps, 1e9)
}

/// Whether a text is the digest of a dataset of this kind.
fn is_digest(text: &str, uri: &DatasetUri) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    match text.split_once(':') {
        Some(("sha256", hex)) => hex.len() == 64 && is_hex(hex),
        Some(("md5", hex)) => {
            let hex = hex.strip_suffix(".dir").unwrap_or(hex);
            matches!(uri, DatasetUri::Dvc { .. }) && hex.len() == 32 && is_hex(hex)
        }
        _ => false,
    }
}

fn check_numbers(of: &Hyperparameters) -> Result<(), ConfigError> {
    let change = &of.augmentation;
    #[expect(clippy::cast_precision_loss, reason = "a seed beyond 2^53 is out of range anyway")]
    let seed = of.seed as f64;
    let ranges = [
        ("hyperparameters.epochs", f64::from(of.epochs), 1.0, 10_000.0),
        ("hyperparameters.batchSize", f64::from(of.batch_size), 1.0, 4096.0),
        ("hyperparameters.microBatchSize", of.micro_batch_size.map_or(1.0, f64::from), 1.0, 4096.0),
        ("hyperparameters.learningRate", of.learning_rate, 1e-9, 100.0),
        ("hyperparameters.weightDecay", of.weight_decay, 0.0, 1.0),
        ("hyperparameters.momentum", of.momentum, 0.0, 0.9999),
        ("hyperparameters.labelSmoothing", of.label_smoothing, 0.0, 0.5),
        ("hyperparameters.stepSize", f64::from(of.step_size), 1.0, 10_000.0),
        ("hyperparameters.maxGradientNorm", of.max_gradient_norm.unwrap_or(1.0), 1e-6, 1e6),
        ("hyperparameters.emaDecay", of.ema_decay.unwrap_or(0.0), 0.0, 0.99999),
        ("hyperparameters.earlyStoppingEpochs", of.early_stopping_epochs.map_or(1.0, f64::from), 1.0, 10_000.0),
        ("hyperparameters.validationShare", of.validation_share, 0.01, 0.5),
        ("hyperparameters.seed", seed, 0.0, 9_007_199_254_740_991.0),
        ("hyperparameters.threads", of.threads.map_or(1.0, f64::from), 1.0, 1024.0),
        ("hyperparameters.augmentation.cropArea", change.crop_area, 0.01, 1.0),
        ("hyperparameters.augmentation.horizontalFlip", change.horizontal_flip, 0.0, 1.0),
        ("hyperparameters.augmentation.rotationDegrees", change.rotation_degrees, 0.0, 180.0),
        ("hyperparameters.augmentation.translate", change.translate, 0.0, 1.0),
        ("hyperparameters.augmentation.scale", change.scale, 0.0, 0.9),
        ("hyperparameters.augmentation.brightness", change.brightness, 0.0, 1.0),
        ("hyperparameters.augmentation.contrast", change.contrast, 0.0, 1.0),
        ("hyperparameters.augmentation.saturation", change.saturation, 0.0, 1.0),
        ("hyperparameters.augmentation.hue", change.hue, 0.0, 0.5),
        ("hyperparameters.augmentation.mixup", change.mixup, 0.0, 10.0),
        ("hyperparameters.augmentation.cutmix", change.cutmix, 0.0, 10.0),
    ];
    // NaN is in no range.
    match ranges.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
        Some((field, value, low, high)) => Err(ConfigError::Range { field, value, low, high }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use anneal_api::hyperparameters::{Optimizer, Precision, Schedule};

    use super::*;

    fn parsed(yaml: &str, overrides: Overrides) -> Result<RunConfig, ConfigError> {
        check(serde_yaml::from_str(yaml).expect("a configuration"), overrides, Sha256::from_bytes([0; 32]))
    }

    fn refusal(yaml: &str) -> String {
        parsed(yaml, Overrides::default()).expect_err("a refusal").to_string()
    }

    #[test]
    fn a_dataset_is_all_that_a_configuration_needs() {
        let config = parsed("dataset: {uri: 'synthetic://'}", Overrides::default()).expect("a configuration");
        assert_eq!(config.hyperparameters, Hyperparameters::default());
        assert_eq!(config.models, Path::new("output/models"));
    }

    #[test]
    fn what_the_operator_passes_wins_over_the_file() {
        let yaml = "{name: a, dataset: {uri: 'synthetic://'}, output: {dir: b, modelsDir: c}}";
        let overrides = Overrides {
            name: Some("cats".into()),
            output: Some("/output/runs/cats-1".into()),
            models: Some("/output/models".into()),
            resume_from: None,
        };
        let config = parsed(yaml, overrides).expect("a configuration");
        assert_eq!((config.name.as_str(), config.models.as_path()), ("cats", Path::new("/output/models")));
        assert_eq!(config.checkpoints(), Path::new("/output/runs/cats-1/checkpoints"));
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_range() {
        let message = refusal("{dataset: {uri: 'synthetic://'}, hyperparameters: {learningRate: .nan}}");
        assert!(message.contains("learningRate is NaN; it must be between 0.000000001 and 100"), "{message}");
        let message = refusal("{dataset: {uri: 'synthetic://'}, model: {architecture: simple, inputSize: 64}}");
        assert!(message.contains("takes 224 only"), "{message}");
        let message = refusal("{dataset: {uri: 'synthetic://'}, checkpoints: {intervalSeconds: 0}}");
        assert!(message.contains("checkpoints.intervalSeconds is 0"), "{message}");
        let message = refusal("{dataset: {uri: 'synthetic://'}, hyperparameters: {trainSizes: [64, 16]}}");
        assert!(message.contains("trainSizes has 16"), "{message}");
        assert!(refusal("dataset: {uri: photos}").contains("write pvc://"));
    }

    #[test]
    fn recipes_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/recipes");
        let files = fs::read_dir(folder).expect("recipes").map(|entry| entry.expect("a file").path());
        let recipes: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "yaml")).collect();
        assert!(recipes.len() >= 2, "{recipes:?}");
        for recipe in recipes {
            read(&recipe, Overrides::default()).expect("a recipe");
        }
    }

    #[test]
    fn the_python_pipelines_named_configurations_are_recipes() {
        for (name, architecture, epochs, batch_size, learning_rate) in [
            ("quick-test", Architecture::Simple, 2, 16, 1e-3),
            ("full-simple", Architecture::Simple, 10, 32, 1e-3),
            ("full-improved", Architecture::Improved, 15, 32, 5e-4),
            ("production", Architecture::Improved, 20, 64, 1e-4),
        ] {
            let file = format!("{}/../examples/recipes/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            let config = read(&PathBuf::from(file), Overrides::default()).expect("a recipe");
            let expected = Hyperparameters {
                epochs,
                batch_size,
                learning_rate,
                optimizer: Optimizer::Adam,
                schedule: Schedule::Constant,
                precision: Precision::Float32,
                ..Hyperparameters::default()
            };
            assert_eq!(config.hyperparameters, expected, "{name}");
            assert_eq!((config.name.as_str(), config.model.architecture), (name, architecture));
            assert_eq!(config.model.input_size, 224, "{name}");
        }
    }

    #[test]
    fn epochs_are_shared_out_among_the_sizes() {
        let sizes = |hyperparameters: &str| {
            let yaml = format!(
                "{{dataset: {{uri: 'synthetic://'}}, model: {{inputSize: 160}}, hyperparameters: {hyperparameters}}}"
            );
            let config = parsed(&yaml, Overrides::default()).expect("a configuration");
            (0..config.hyperparameters.epochs.unsigned_abs()).map(|epoch| config.train_size(epoch)).collect::<Vec<_>>()
        };
        assert_eq!(sizes("{epochs: 6, trainSizes: [96, 128, 128]}"), [96, 96, 128, 128, 128, 128]);
        assert_eq!(sizes("{epochs: 5, trainSizes: [96, 128]}"), [96, 96, 96, 128, 128]);
        assert_eq!(sizes("{epochs: 1, trainSizes: [96, 128]}"), [96]);
        assert_eq!(sizes("{epochs: 2}"), [160, 160]);
    }
}
