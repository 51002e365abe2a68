//! System calls that no safe library offers: the socket options of x_tables and the owner of a
//! namespace. The only unsafe code of this program; what is around the calls keeps their rules.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// `NS_GET_USERNS` of `linux/nsfs.h`.
const GET_USER_NAMESPACE: libc::Ioctl = 0xb701;

fn errno() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Opens the user namespace that owns `namespace`. `EPERM` when that is none of ours.
pub(crate) fn owner_of(namespace: &impl AsFd) -> Result<OwnedFd, Errno> {
    let fd = namespace.as_fd().as_raw_fd();
    // SAFETY: the request takes no argument and returns a new descriptor, which is ours alone.
    let owner = unsafe { libc::ioctl(fd, GET_USER_NAMESPACE) };
    if owner < 0 {
        return Err(errno());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
}

/// Reads a socket option into `buffer`, whose first bytes may hold a question. Gives the length of
/// the answer.
pub(crate) fn get_option(
    socket: &impl AsFd,
    level: i32,
    option: i32,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::INVAL)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes at most `length` bytes of the buffer.
    let done =
        unsafe { libc::getsockopt(fd, level, option, buffer.as_mut_ptr().cast(), &mut length) };
    if done < 0 {
        return Err(errno());
    }
    Ok(usize::try_from(length).unwrap_or(0).min(buffer.len()))
}

/// Sets a socket option to `value`, in which the kernel finds a pointer at `pointer_at`: it fills
/// `counters` through it.
pub(crate) fn replace_option(
    socket: &impl AsFd,
    level: i32,
    option: i32,
    value: &mut [u8],
    pointer_at: usize,
    counters: &mut [u64],
) -> Result<(), Errno> {
    let pointer = counters.as_mut_ptr().expose_provenance().to_ne_bytes();
    let place = value.get_mut(pointer_at..pointer_at + pointer.len());
    place.ok_or(Errno::INVAL)?.copy_from_slice(&pointer);
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::INVAL)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes, and writes two numbers for each counter that the
    // caller announced in them; it made `counters` that long.
    let done = unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), length) };
    if done < 0 { Err(errno()) } else { Ok(()) }
}

/// Sets a socket option to `value`.
pub(crate) fn set_option(
    socket: &impl AsFd,
    level: i32,
    option: i32,
    value: &[u8],
) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::INVAL)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes of the value.
    let done = unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), length) };
    if done < 0 { Err(errno()) } else { Ok(()) }
}
