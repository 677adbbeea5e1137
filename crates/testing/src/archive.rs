//! Files, gzip, and tar archives compressed with zstd or gzip, read as streams with bounded memory.
//!
//! Invariants:
//! 1. Memory is bounded by the zstd window ([`MAX_WINDOW_BYTES`]) plus one member (the caller's limit), whatever lengths
//!    the archive declares.
//! 2. A member is handed on only when all its announced bytes were there; a cut-off or damaged stream ends in an error.

use std::{
    fs::File,
    io::{self, BufReader, Chain, Cursor, Read},
    ops::ControlFlow,
    path::Path,
};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use crate::ReadError;

/// The largest zstd window that is accepted: 2^27, what `zstd --long=27` makes.
pub const MAX_WINDOW_BYTES: u64 = 1 << 27;

/// The largest JSON file that is read whole. Tests of blocks at the limit of EIP-7934 have a hundred megabytes for each fork.
pub const MAX_JSON_BYTES: u64 = 1 << 30;

/// The largest long name or pax header of an archive's member.
const MAX_TAR_EXTENSION_BYTES: u64 = 1 << 16;

/// True for the archives that [`visit_members`] reads, by name: `.tar.zst`, `.tar.gz`, `.tgz` and `.tar`.
pub fn is_archive(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    [".tar.zst", ".tar.gz", ".tgz", ".tar"].iter().any(|end| name.ends_with(end))
}

/// Reads a whole file of at most `limit` bytes; `what` names it in errors.
///
/// # Errors
/// [`ReadError::Io`], or [`ReadError::TooLarge`].
pub fn read_file(path: &Path, what: &'static str, limit: u64) -> Result<Vec<u8>, ReadError> {
    let file = open(path)?;
    let name = path.display().to_string();
    let declared = file.metadata().map_err(|source| ReadError::Io { path: path.to_owned(), source })?.len();
    if declared > limit {
        return Err(ReadError::TooLarge { file: name, what, got: declared, expected: limit });
    }
    read_bounded(file, &name, what, limit, |source| ReadError::Io { path: path.to_owned(), source })
}

/// Reads a whole gzip file of which at most `limit` bytes come out.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::Compression`] (damaged or cut off), or [`ReadError::TooLarge`].
pub fn read_gzip(path: &Path, what: &'static str, limit: u64) -> Result<Vec<u8>, ReadError> {
    let name = path.display().to_string();
    let decoder = MultiGzDecoder::new(BufReader::new(open(path)?));
    read_bounded(decoder, &name, what, limit, |source| ReadError::Compression { file: name.clone(), source })
}

/// Calls `visit` with name and content of each regular file in the archive, in the archive's order, until the
/// archive or `visit` ends.
///
/// # Errors
/// [`ReadError::Io`], [`ReadError::Compression`], [`ReadError::Checksum`], [`ReadError::Truncated`], or
/// [`ReadError::TooLarge`] (a member over `limit` bytes). Members before the fault were visited by then.
pub fn visit_members(
    path: &Path,
    limit: u64,
    visit: &mut dyn FnMut(String, Vec<u8>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let name = path.display().to_string();
    let file = BufReader::new(open(path)?);
    let mut stream: Box<dyn Read> = if name.ends_with(".zst") {
        Box::new(ZstdReader::new(file))
    } else if name.ends_with(".gz") || name.ends_with(".tgz") {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    if visit_tar(&mut stream, &name, limit, visit)?.is_continue() {
        // The stream's end holds the checksum, so it is read even though the archive's end was met.
        io::copy(&mut stream, &mut io::sink()).map_err(|source| stream_error(&name, source))?;
    }
    Ok(())
}

fn visit_tar(
    stream: &mut dyn Read,
    name: &str,
    limit: u64,
    visit: &mut dyn FnMut(String, Vec<u8>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, ReadError> {
    let mut archive = tar::Archive::new(stream);
    let fault = |source| stream_error(name, source);
    let mut long_name: Option<Vec<u8>> = None;
    // Raw entries: the library would read long names and pax headers whole, whatever their length.
    for entry in archive.entries().map_err(fault)?.raw(true) {
        let mut entry = entry.map_err(fault)?;
        let header = entry.header();
        let (kind, size) = (header.entry_type(), header.entry_size().map_err(fault)?);
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            let data = read_member(&mut entry, name, "long name of a member", size, MAX_TAR_EXTENSION_BYTES)?;
            long_name = if kind.is_gnu_longname() {
                Some(data.into_iter().take_while(|byte| *byte != 0).collect())
            } else {
                pax_path(&data).map_err(fault)?
            };
            continue;
        }
        let member = match long_name.take() {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => String::from_utf8_lossy(&header.path_bytes()).into_owned(),
        };
        if kind.is_file() {
            let content = read_member(&mut entry, &format!("{name}!{member}"), "member", size, limit)?;
            if visit(member, content).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The `path` record of a pax header, if it has one.
fn pax_path(data: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut path = None;
    for extension in tar::PaxExtensions::new(data) {
        let extension = extension?;
        if extension.key_bytes() == b"path" {
            path = Some(extension.value_bytes().to_vec());
        }
    }
    Ok(path)
}

fn read_member(
    entry: &mut dyn Read,
    file: &str,
    what: &'static str,
    size: u64,
    limit: u64,
) -> Result<Vec<u8>, ReadError> {
    if size > limit {
        return Err(ReadError::TooLarge { file: file.to_owned(), what, got: size, expected: limit });
    }
    let content = read_bounded(entry, file, what, limit, |source| stream_error(file, source))?;
    // The archive library ends a cut-off member silently.
    if content.len() as u64 != size {
        let got = content.len() as u64;
        return Err(ReadError::Truncated { file: file.to_owned(), what, got, expected: size });
    }
    Ok(content)
}

fn read_bounded(
    reader: impl Read,
    file: &str,
    what: &'static str,
    limit: u64,
    fault: impl Fn(io::Error) -> ReadError,
) -> Result<Vec<u8>, ReadError> {
    let mut content = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut content).map_err(fault)?;
    if content.len() as u64 > limit {
        return Err(ReadError::TooLarge { file: file.to_owned(), what, got: content.len() as u64, expected: limit });
    }
    Ok(content)
}

fn open(path: &Path) -> Result<File, ReadError> {
    File::open(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })
}

/// Turns an error of the stream into ours; a [`ZstdFault`] in it gets its own variant again.
fn stream_error(file: &str, source: io::Error) -> ReadError {
    let file = file.to_owned();
    match find_zstd_fault(&source) {
        Some(&ZstdFault::Window { got }) => {
            ReadError::TooLarge { file, what: "the zstd window", got, expected: MAX_WINDOW_BYTES }
        }
        Some(&ZstdFault::Checksum { got, expected }) => ReadError::Checksum { file, got, expected },
        None => ReadError::Compression { file, source },
    }
}

/// The archive library wraps the reader's errors, so the whole chain is searched.
fn find_zstd_fault(error: &io::Error) -> Option<&ZstdFault> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(inner) = next {
        if let Some(fault) = inner.downcast_ref::<ZstdFault>() {
            return Some(fault);
        }
        next = match inner.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as _),
            None => inner.source(),
        };
    }
    None
}

#[derive(Debug, thiserror::Error)]
enum ZstdFault {
    #[error("zstd window of {got} bytes is too large")]
    Window { got: u64 },
    #[error("zstd checksum is {got:#010x}, expected {expected:#010x}")]
    Checksum { got: u32, expected: u32 },
}

type FrameSource<R> = Chain<Cursor<Vec<u8>>, R>;

/// All frames of a zstd file as one stream.
///
/// The decoder refuses windows over 100 MiB when it is used again, and takes any window when it is fresh; so each frame gets a
/// fresh one, after the window was checked here. It takes memory as data comes out, not as the window declares.
enum ZstdReader<R: Read> {
    /// Between frames: bytes read ahead, and the rest.
    Between(Vec<u8>, R),
    Frame(Box<StreamingDecoder<FrameSource<R>, FrameDecoder>>),
    Done,
}

impl<R: Read> ZstdReader<R> {
    const fn new(source: R) -> Self {
        Self::Between(Vec::new(), source)
    }
}

impl<R: Read> Read for ZstdReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            // An error leaves `Done` behind, so that a caller who goes on meets the end.
            match std::mem::replace(self, Self::Done) {
                Self::Done => return Ok(0),
                Self::Between(mut head, mut source) => {
                    let missing = MAX_FRAME_HEADER_BYTES.saturating_sub(head.len());
                    source.by_ref().take(missing as u64).read_to_end(&mut head)?;
                    if head.is_empty() {
                        return Ok(0);
                    }
                    if let Some(got) = declared_window(&head).filter(|window| *window > MAX_WINDOW_BYTES) {
                        return Err(io::Error::other(ZstdFault::Window { got }));
                    }
                    let decoder = StreamingDecoder::new(Cursor::new(head).chain(source)).map_err(io::Error::other)?;
                    *self = Self::Frame(Box::new(decoder));
                }
                Self::Frame(mut decoder) => {
                    let count = decoder.read(out)?;
                    if count > 0 {
                        *self = Self::Frame(decoder);
                        return Ok(count);
                    }
                    let (source, decoder) = decoder.into_parts();
                    if let (Some(expected), Some(got)) =
                        (decoder.get_checksum_from_data(), decoder.get_calculated_checksum())
                        && got != expected
                    {
                        return Err(io::Error::other(ZstdFault::Checksum { got, expected }));
                    }
                    let (head, rest) = source.into_inner();
                    let unread = head.get_ref().get(head.position() as usize..).unwrap_or_default().to_vec();
                    *self = Self::Between(unread, rest);
                }
            }
        }
    }
}

/// Magic number, descriptor, window or dictionary, content size (RFC 8878, section 3.1.1.1).
const MAX_FRAME_HEADER_BYTES: usize = 18;

/// The window that a frame header declares, in bytes (RFC 8878, 3.1.1.1.2). `None` where the header is cut off
/// or not of a zstd frame: the decoder then says what is wrong.
fn declared_window(head: &[u8]) -> Option<u64> {
    let (magic, rest) = head.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*magic) != 0xFD2F_B528 {
        return None;
    }
    let (&descriptor, rest) = rest.split_first()?;
    if descriptor & 0x20 == 0 {
        let window = *rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + (base >> 3) * u64::from(window & 7));
    }
    // Single segment: the window is the content's size, which stands after the dictionary's id.
    let dictionary = [0usize, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1usize, 2, 4, 8][usize::from(descriptor >> 6)];
    let field = rest.get(dictionary..dictionary + length)?;
    let size = field.iter().rev().fold(0u64, |size, byte| size << 8 | u64::from(*byte));
    Some(if length == 2 { size + 256 } else { size })
}
