//! `vmstore token`: who may do what through `vmstore serve --listen`.

use chunkstore::catalog::ImageName;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use replicate::rpc::auth::{Grant, ImagePattern, Role, TokenFile};
use serde_json::json;

use crate::connector::Connector;
use crate::failure::{Exit, Result};
use crate::terminal::Terminal;
use crate::terminal::output::{bytes, table};

/// Manage the tokens by which clients elsewhere are admitted
#[derive(Debug, Args)]
pub(crate) struct TokenCommand {
    #[command(subcommand)]
    action: Action,
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token and print it, this once
    Add(Add),
    /// List the tokens' names and what they may do
    List,
    /// Make a token worthless at once
    Remove {
        /// Whose
        name: ImageName,
    },
}

/// What `token add` takes.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  (umask 077; vmstore token add site-a --role push --image 'web*' --quota 200GiB > site-a.token)"
)]
struct Add {
    /// Whose token it is
    name: ImageName,
    /// read: list and read; push: add, and neither remove nor read; admin: everything, or with --image to read and push
    /// those
    #[arg(long)]
    role: Role,
    /// Only images whose names match, with * and ? for any characters; may be repeated [default: all]
    #[arg(long = "image", value_name = "PATTERN")]
    images: Vec<ImagePattern>,
    /// How many bytes may be pushed in all, such as 200GiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_positive)]
    quota: Option<std::num::NonZeroU64>,
    /// Admit a client's certificate with this name, instead of a token
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
