//! Placeholder.
/// Runs.
pub async fn run(_: std::sync::Arc<crate::context::Context>, _: Option<&str>, _: u16) {
    std::future::pending::<()>().await
}
