//! The install script, in the order in which it runs.
//!
//! Every file names the one before it, because pgrx puts them in the order of their needs and of
//! nothing else. All SQL is in these files; functions written in Rust are declared there, too, so
//! that their comments and rights stand beside them.

use pgrx::extension_sql_file;

extension_sql_file!("../sql/install/10_schema.sql", name = "schema", bootstrap);
extension_sql_file!("../sql/install/30_tables.sql", name = "tables", requires = ["schema"]);
extension_sql_file!("../sql/install/40_capture.sql", name = "capture", requires = ["tables"]);
extension_sql_file!("../sql/install/45_positions.sql", name = "positions", requires = ["capture"]);
extension_sql_file!("../sql/install/50_api.sql", name = "api", requires = ["positions"]);
extension_sql_file!("../sql/install/55_failures.sql", name = "failures", requires = ["api"]);
extension_sql_file!("../sql/install/60_views.sql", name = "views", requires = ["failures"]);
extension_sql_file!("../sql/install/62_trace.sql", name = "trace", requires = ["views"]);
extension_sql_file!("../sql/install/65_catch_up.sql", name = "catch_up", requires = ["trace"]);
extension_sql_file!("../sql/install/66_realtime.sql", name = "realtime", requires = ["catch_up"]);
extension_sql_file!("../sql/install/68_probe.sql", name = "probe", requires = ["realtime"]);
extension_sql_file!("../sql/install/70_check.sql", name = "check", requires = ["probe"]);
extension_sql_file!(
    "../sql/install/90_grants.sql",
    name = "grants",
    requires = ["check"],
    finalize
);
