//! Contexts that no node has issued for the key that they are sent for, as a broken or a hostile client makes them. All of them must be
//! refused before anything happens (rule V5).

use bytes::Bytes;
use quorate_core::context_keys::{ContextKeys, taken_apart};
use quorate_core::version::Context;
use quorate_wire::Key;
use quorate_wire::random::Random;

use crate::cluster::CLUSTER;

/// A key, and a context that a client was given for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) key: &'a str,
    pub(crate) context: &'a Bytes,
}

/// A forged context for the key of `own`, in one of several ways; nothing if that way takes more than the client has been given.
///
/// # Errors
/// When what a client was given has not the shape of a context.
pub(crate) fn forge(
    own: Option<Given<'_>>,
    other: Option<Given<'_>>,
    random: &Random,
) -> Result<Option<Bytes>, String> {
    let way = random.below(WAYS);
    let Some(own) = own else { return Ok(None) };
    Ok(match way {
        // As it is, which a client with a bug may do.
        0 => other.map(|other| other.context.clone()),
        1 => {
            let mut bytes = own.context.to_vec();
            let bit = random.below(8 * bytes.len() as u64) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            Some(bytes.into())
        }
        // Another key's, which says that it is this one's.
        2 => match other {
            Some(other) => {
                let [head, body, tag] = taken_apart(other.context)?;
                let body = Context::open(&body, CLUSTER, &Key::plain(other.key))?.seal(CLUSTER, &Key::plain(own.key));
                Some([head, body, tag].concat().into())
            }
            None => None,
        },
        // Good but for the secret, which clients do not know: under its own name, or under that of the cluster's.
        3 | 4 => {
            let [head, body, _] = taken_apart(own.context)?;
            let context = Context::open(&body, CLUSTER, &Key::plain(own.key))?;
            let sealed = ContextKeys::first(random.array()).seal(&context, CLUSTER, &Key::plain(own.key));
            let [own_head, body, tag] = taken_apart(&sealed)?;
            Some([if way == 3 { own_head } else { head }, body, tag].concat().into())
        }
        // What anybody can make: the inside alone.
        _ => {
            let [_, body, _] = taken_apart(own.context)?;
            Some(body)
        }
    })
}

/// How many ways there are.
const WAYS: u64 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_forgery_opens() {
        let keys = ContextKeys::first([1; 32]);
        let [mine, theirs] = ["mine", "theirs"].map(|key| keys.seal(&Context::new(), CLUSTER, &Key::plain(key)));
        let (own, other) = (Given { key: "mine", context: &mine }, Given { key: "theirs", context: &theirs });
        let random = Random::from_seed(1);
        let (mut made, mut kinds) = (0, std::collections::BTreeSet::new());
        for round in 0..600 {
            let other = (round % 2 == 0).then_some(other);
            let Some(forged) = forge(Some(own), other, &random).expect("well formed") else { continue };
            kinds.insert(forged.len());
            keys.open(&forged, CLUSTER, &Key::plain("mine")).expect_err("refused");
            made += 1;
        }
        assert!(made > 400 && kinds.len() >= 2, "{made} of {} lengths", kinds.len());
        assert_eq!(forge(None, Some(other), &random), Ok(None));
    }
}
