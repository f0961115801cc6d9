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
        write!(out, "{BEGIN_OF_LIST}")?;
    }
    let mut failed = None;
    'all: while let Some(page) = pages.recv().await {
        let page = match page {
            Ok((page, _)) => page,
            Err(error) => {
                failed = Some(Failure::of_read(error));
                break;
            }
        };
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
    // What was begun is ended, so that whoever parses it sees how far it came.
    let complete = failed.is_none();
    match (output.is_json(), listed) {
        (true, true) => writeln!(out, "{}", end_of_list(count, degraded, complete))?,
        (true, false) => {
            let counted = serde_json::json!({
                "schema": "quorate.keys.v1", "count": count, "degraded": degraded, "complete": complete
            });
            writeln!(out, "{counted}")?;
        }
        (false, true) => {}
        (false, false) if complete => writeln!(out, "{count}")?,
        (false, false) => {}
    }
    out.flush()?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    if degraded && !output.is_json() {
        output.say("warning: degraded: stand-ins answered for owners, some keys may be missing");
    }
    Ok(Exit::Done)
}

/// What stands before the keys in JSON.
const BEGIN_OF_LIST: &str = "{\"schema\":\"quorate.keys.v1\",\"keys\":[";

/// What stands after them; `complete` if they are all that there are, or all that were asked for.
fn end_of_list(count: u64, degraded: bool, complete: bool) -> String {
    format!("],\"count\":{count},\"degraded\":{degraded},\"complete\":{complete}}}")
}

/// Keys are short: a page of them is large.
const PAGE_KEYS_MAX: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_was_cut_short_is_json_that_says_so() {
        for complete in [true, false] {
            let text = format!("{BEGIN_OF_LIST}{}{}", named("key", b"k"), end_of_list(1, false, complete));
            let json: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
            assert_eq!((&json["count"], &json["complete"]), (&1.into(), &complete.into()));
            assert_eq!(json["keys"][0]["key"], "k");
        }
    }
}
