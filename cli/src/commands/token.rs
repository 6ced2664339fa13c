//! `vmstore token`: the rights of clients of `vmstore serve --listen`.

use chunkstore::catalog::ImageName;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use replicate::rpc::auth::{Grant, ImagePattern, Role, TokenFile};
use serde_json::json;

use crate::connector::Connector;
use crate::failure::{Exit, Result};
use crate::terminal::Terminal;
use crate::terminal::output::{bytes, table};

/// Manage the tokens that admit remote clients
#[derive(Debug, Args)]
pub(crate) struct TokenCommand {
    #[command(subcommand)]
    action: Action,
}

/// The actions on tokens.
#[derive(Debug, Subcommand)]
enum Action {
    /// Create a token and print it, only this once
    Add(Add),
    /// List the tokens and their rights
    List,
    /// Revoke a token at once
    Remove {
        /// Name of the token
        name: ImageName,
    },
}

/// The arguments of `token add`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  (umask 077; vmstore token add site-a --role push --image 'web*' --quota 200GiB > site-a.token)"
)]
struct Add {
    /// Name of the token
    name: ImageName,
    /// Rights: `read` lists and reads, `push` only adds, `admin` does everything; with --image, admin reads and pushes
    #[arg(long)]
    role: Role,
    /// Restrict to matching images, with the wildcards * and ?; may be repeated [default: all]
    #[arg(long = "image", value_name = "PATTERN")]
    images: Vec<ImagePattern>,
    /// Limit the bytes that may be pushed in total, such as 200GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_positive)]
    quota: Option<std::num::NonZeroU64>,
    /// Admit the client certificate with this name instead of a token
    #[arg(long, value_name = "NAME")]
    client_cert: Option<String>,
}

impl TokenCommand {
    pub(crate) fn run(&self, connector: &Connector, terminal: &Terminal) -> Result<Exit> {
        let tokens = TokenFile::new(connector.store_dir()?);
        match &self.action {
            Action::Add(add) => {
                let quota_bytes = add.quota.map(std::num::NonZeroU64::get);
                let grant = Grant::of_token(add.name.to_string(), add.role, add.images.clone(), quota_bytes);
                let token = match &add.client_cert {
                    Some(client) => tokens.add_client(&grant, Timestamp::now(), client).map(|()| None)?,
                    None => Some(tokens.add(&grant, Timestamp::now())?.text().to_owned()),
                };
                terminal.result(&json!({ "name": add.name, "token": token }), || {
                    token.as_ref().map_or_else(String::new, |token| format!("{token}\n"))
                })?;
            }
            Action::Remove { name } => tokens.remove(name.as_ref())?,
            Action::List => list(terminal, &tokens)?,
        }
        Ok(Exit::Done)
    }
}

fn list(terminal: &Terminal, tokens: &TokenFile) -> Result<()> {
    let entries = tokens.list()?;
    terminal.result(&entries, || {
        let rows = entries.iter().map(|entry| {
            let images: Vec<_> = entry.images.iter().map(ToString::to_string).collect();
            let images = if images.is_empty() { "all".to_owned() } else { images.join(" ") };
            [entry.name.clone(), entry.role.to_string(), images, entry.quota_bytes.map_or_else(String::new, bytes)]
        });
        table(["NAME", "ROLE", "IMAGES", "QUOTA"], &[3], rows.collect())
    })
}
