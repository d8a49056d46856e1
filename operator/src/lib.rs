//! The controllers of `TrainingRun` and `ModelDeployment`.
