//! `keys`: what there is.

use std::ffi::OsStr;
use std::io::{self, BufWriter, Write};

use super::args::KeysArgs;
use super::connection::Cluster;
use super::export::pages;
use super::failure::{Exit, Failure, Outcome};
use super::key::KeyEncoding;
use super::key_value::named;
use super::output::Output;
use super::settings::Settings;

/// `keys [PREFIX]`.
pub(crate) async fn keys(args: &KeysArgs, settings: &Settings, output: &Output) -> Outcome {
    let prefix = args.prefix.as_deref().unwrap_or(OsStr::new(""));
    let prefix = args.key_encoding.unwrap_or(KeyEncoding::Text).decode(prefix, "the prefix")?;
    let printed = args.key_encoding.unwrap_or(KeyEncoding::Escaped);
    let limit = args.limit.unwrap_or(u64::MAX);
    let cluster = Cluster::connect(settings).await?;
    let page_size = limit.min(PAGE_KEYS_MAX.into()) as u32;
    let mut pages = pages(cluster.scan(settings.r()).prefix(prefix).keys_only().page_size(page_size), *output);
    let mut out = BufWriter::new(io::stdout());
    let (mut count, mut degraded) = (0, false);
    let listed = !args.count;
    if output.is_json() && listed {
        write!(out, "{{\"schema\":\"quorate.keys.v1\",\"keys\":[")?;
    }
    'all: while let Some(page) = pages.recv().await {
        let (page, _) = page.map_err(Failure::of_read)?;
        degraded |= page.quorum.degraded;
        for record in page.records {
            if count == limit {
                break 'all;
            }
            if output.is_json() && listed {
                // One at a time: there may be more than fit into memory.
                let comma = if count == 0 { "" } else { "," };
                write!(out, "{comma}{}", named("key", record.key()))?;
            } else if listed {
                out.write_all(&printed.encode(record.key()))?;
                out.write_all(b"\n")?;
            }
            count += 1;
        }
        // Whoever reads along sees a page when it is there.
        out.flush()?;
        if count == limit {
            break;
        }
    }
    match (output.is_json(), listed) {
        (true, true) => writeln!(out, "],\"count\":{count},\"degraded\":{degraded}}}")?,
        (true, false) => {
            writeln!(
                out,
                "{}",
                serde_json::json!({ "schema": "quorate.keys.v1", "count": count, "degraded": degraded })
            )?;
        }
        (false, true) => {}
        (false, false) => writeln!(out, "{count}")?,
    }
    out.flush()?;
    if degraded && !output.is_json() {
        output.say("warning: degraded: stand-ins answered for owners, some keys may be missing");
    }
    Ok(Exit::Done)
}

/// Keys are short: a page of them is large.
const PAGE_KEYS_MAX: u32 = 10_000;
