//! Blobs coming in over connections that break.

use std::io::Read;
use std::sync::Mutex;

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::media_type::OCI_LAYER_GZIP;
use rimg_registry::client::ClientError;

use crate::fake::{Answer, Asked, Fake};

/// Larger than a piece, and of bytes that differ by position.
pub fn content() -> Vec<u8> {
    (0..700_000_u32).flat_map(|number| number.to_le_bytes()).collect()
}

pub fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor::new(OCI_LAYER_GZIP, Digest::sha256(content), content.len() as u64)
}

fn pull(fake: &Fake, blob: &Descriptor, offset: u64) -> Result<Vec<u8>, String> {
    let mut read = Vec::new();
    let mut reader = fake.repository().open_blob(blob, offset).map_err(|error| error.to_string())?;
    reader.read_to_end(&mut read).map_err(|error| error.to_string())?;
    Ok(read)
}

fn start_of(asked: &Asked) -> Option<usize> {
    asked.header("range").strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn partial(content: &[u8], start: usize) -> Answer {
    let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
    Answer::status(206).body(&content[start..]).with("content-range", range)
}

#[test]
fn a_blob_arrives_whole_and_from_an_offset() {
    let content = content();
    let served = content.clone();
    let fake = Fake::start(move |asked| match start_of(asked) {
        Some(start) => partial(&served, start),
        None => Answer::ok(served.clone()),
    });
    let blob = descriptor(&content);
    assert!(pull(&fake, &blob, 0).unwrap() == content);
    assert!(pull(&fake, &blob, 1_000_001).unwrap() == content[1_000_001..]);
    assert_eq!(pull(&fake, &blob, blob.size).unwrap(), b"");
    assert_eq!(fake.log().len(), 2);
    let empty = Fake::start(|_| Answer::ok(""));
    assert_eq!(pull(&empty, &descriptor(b""), 0).unwrap(), b"");
}

/// A registry whose first answers break off after some bytes; what it does then is `rest`.
fn breaking(breaks: usize, rest: impl Fn(&[u8], usize) -> Answer + Send + Sync + 'static) -> (Fake, Vec<u8>) {
    let content = content();
    let (served, left) = (content.clone(), Mutex::new(breaks));
    let fake = Fake::start(move |asked| {
        let start = start_of(asked);
        let mut left = left.lock().unwrap();
        if *left == 0 {
            return rest(&served, start.unwrap_or(0));
        }
        *left -= 1;
        let start = start.unwrap_or(0);
        let end = start + 333_333;
        let whole = served.len() - start;
        let answer = if start == 0 { Answer::ok("") } else { partial(&served, start) };
        answer.body(&served[start..end]).claiming(whole)
    });
    (fake, content)
}

#[test]
fn a_broken_download_goes_on_from_where_it_broke() {
    let (fake, content) = breaking(5, partial);
    assert!(pull(&fake, &descriptor(&content), 0).unwrap() == content);
    assert_eq!(fake.log().len(), 6, "{:?}", fake.log());
}

#[test]
fn a_server_without_ranges_sends_it_all_again_and_the_reader_does_not_notice() {
    let (fake, content) = breaking(1, |content, _| Answer::ok(content));
    assert!(pull(&fake, &descriptor(&content), 0).unwrap() == content);
    assert_eq!(fake.log().len(), 2);
}

#[test]
fn a_range_other_than_asked_for_is_not_believed() {
    let wrong =
        ["bytes 0-9/10", "bytes 1-2799999/2800000", "nonsense", "bytes */2800000", "bytes 333333-2799999/99"];
    for range in wrong {
        let asked = Mutex::new(0);
        let (fake, content) = breaking(1, move |content, _| {
            *asked.lock().unwrap() += 1;
            match *asked.lock().unwrap() {
                1 => Answer::status(206).body("xxxxxxxxxx").with("content-range", range),
                _ => Answer::ok(content),
            }
        });
        assert!(pull(&fake, &descriptor(&content), 0).unwrap() == content, "{range}");
        assert_eq!(fake.log().len(), 3);
    }
}

#[test]
fn a_server_that_always_breaks_is_given_up() {
    let content = content();
    let fake = Fake::start(|_| Answer::ok("").claiming(2_800_000));
    let error = pull(&fake, &descriptor(&content), 0).unwrap_err();
    assert!(error.contains("no connection") || error.contains("blob"), "{error}");
    assert_eq!(fake.log().len(), 4);
}

#[test]
fn a_blob_of_another_size_is_damaged() {
    let blob = descriptor(&content());
    let short = Fake::start(|_| Answer::ok("short"));
    let error = short.repository().open_blob(&blob, 0).err().unwrap();
    assert!(matches!(error, ClientError::Damaged { .. }), "{error}");
    // Without a length, the excess shows in the bytes.
    let long = Fake::start(|_| Answer::raw(&[&b"HTTP/1.1 200 OK\r\n\r\n"[..], &content(), b"more"].concat()));
    let error = pull(&long, &blob, 0).unwrap_err();
    assert!(error.contains("more than its 2800000 bytes"), "{error}");
}

#[test]
fn wrong_bytes_are_found_by_who_verifies() {
    let content = content();
    let mut damaged = content.clone();
    damaged[1_234_567] ^= 1;
    let fake = Fake::start(move |_| Answer::ok(damaged.clone()));
    let blob = descriptor(&content);
    let reader = fake.repository().open_blob(&blob, 0).unwrap();
    let mut verified = rimg_formats::digest::VerifyReader::new(reader, blob.digest, blob.size);
    let error = std::io::copy(&mut verified, &mut std::io::sink()).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[test]
fn foreign_layers_come_from_elsewhere_without_credentials() {
    let elsewhere = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "");
        Answer::ok("foreign")
    });
    let registry = Fake::start(|_| Answer::status(404));
    let mut blob = descriptor(b"foreign");
    assert!(pull(&registry, &blob, 0).unwrap_err().contains("not found"));
    blob.urls = vec!["file:///etc/passwd".to_owned(), format!("http://{}/layer", elsewhere.address)];
    assert_eq!(pull(&registry, &blob, 0).unwrap(), b"foreign");
    assert_eq!(elsewhere.log(), ["GET /layer"]);
}

#[test]
fn a_reader_that_leaves_early_stops_the_download() {
    let content = content();
    let served = content.clone();
    let fake = Fake::start(move |_| Answer::ok(served.clone()));
    let repository = fake.repository();
    let mut reader = repository.open_blob(&descriptor(&content), 0).unwrap();
    let mut first = [0; 4];
    reader.read_exact(&mut first).unwrap();
    drop(reader);
    drop(repository);
}
