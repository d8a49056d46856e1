//! The cluster that KUBECONFIG names, with the operator in it.

use anyhow::{Context, Result, ensure};
use kube::Client;

use crate::{Said, kubectl, operator::Operator};

/// The cluster under test.
#[derive(Clone)]
pub struct Cluster {
    /// A client with the rights of whoever runs the tests.
    pub client: Client,
    /// The operator in it.
    pub operator: Operator,
}

impl Cluster {
    /// Connects to the cluster that KUBECONFIG names.
    ///
    /// # Errors
    /// When there is none, or the operator is not installed in it.
    pub async fn connect() -> Result<Self> {
        ensure!(
            std::env::var_os("KUBECONFIG").is_some(),
            "KUBECONFIG is not set; run `make e2e`, which brings a cluster up and installs the operator"
        );
        let client = Client::try_default().await.context("the cluster that KUBECONFIG names cannot be used")?;
        kubectl::run(&["version", "--client"], None)
            .await
            .context("kubectl cannot be run; run `make e2e`, which puts one into the PATH")?
            .ok()?;
        let operator = Operator::find(&client)
            .await
            .context("the operator is not in the cluster; run `make e2e`, which installs it")?;
        Ok(Self { client, operator })
    }

    /// Runs kubectl in no namespace of its own.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub async fn kubectl(&self, args: &[&str]) -> Result<Said> {
        kubectl::run(args, None).await
    }
}
