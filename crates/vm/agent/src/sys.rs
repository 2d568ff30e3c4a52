//! Calls to the kernel that the standard library does not offer. The only unsafe code of the agent.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use vmwright_agent_proto::{ExitStatus, WindowSize};

/// The number of a process.
pub(crate) type Pid = libc::pid_t;

pub(crate) use libc::{
    EINVAL, EISDIR, ENOENT, ENOSYS, ENOTDIR, EPOLLIN, EPOLLOUT, MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID,
    MS_RDONLY, MS_REMOUNT, O_NOCTTY, O_NONBLOCK, SIGCHLD, SIGINT, SIGKILL, SIGTERM,
};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_string(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(EINVAL))
}

fn own(fd: libc::c_int) -> OwnedFd {
    // SAFETY: called with a descriptor that the kernel has just made for this process alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Mounts a filesystem, or moves or remounts one, as mount(2) does.
pub(crate) fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> io::Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (kind, data) = (c_string(kind)?, c_string(data)?);
    // SAFETY: all four pointers are to strings that end in NUL and outlive the call.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    check(result).map(drop)
}

/// Loads a kernel module from an open file, without parameters.
pub(crate) fn load_module(file: BorrowedFd<'_>) -> io::Result<()> {
    let none: &CStr = c"";
    // SAFETY: the parameters are a string that ends in NUL; the kernel checks the file's content.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    check(result as libc::c_int).map(drop)
}

/// Writes all dirty data to the disks.
pub(crate) fn sync() {
    // SAFETY: takes no arguments.
    unsafe { libc::sync() }
}

/// Powers off or reboots the machine at once.
pub(crate) fn reboot(power_off: bool) -> io::Error {
    let how = if power_off { libc::RB_POWER_OFF } else { libc::RB_AUTOBOOT };
    // SAFETY: takes a number.
    unsafe { libc::reboot(how) };
    io::Error::last_os_error()
}

/// Names the machine.
pub(crate) fn set_hostname(name: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Sets the clock to a time since 1970-01-01 UTC.
pub(crate) fn set_clock(seconds: i64, nanoseconds: u32) -> io::Result<()> {
    let time = libc::timespec { tv_sec: seconds, tv_nsec: libc::c_long::from(nanoseconds) };
    // SAFETY: the pointer is to a live timespec.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

/// The user the agent runs as.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Sends a signal to a process, or to a process group where the number is negative.
pub(crate) fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The signal by which systemd is told to power off (4) or to reboot (5).
pub(crate) fn realtime_signal(offset: i32) -> i32 {
    libc::SIGRTMIN() + offset
}

/// Takes the exit of a child, if one has ended.
pub(crate) fn reap() -> Option<(Pid, ExitStatus)> {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| match libc::WIFSIGNALED(status) {
        true => (pid, ExitStatus::Signal(libc::WTERMSIG(status))),
        false => (pid, ExitStatus::Code((libc::WEXITSTATUS(status) & 0xFF) as u8)),
    })
}

/// Whether this process has children, ended or not.
pub(crate) fn has_children() -> bool {
    // SAFETY: a null pointer is allowed: the answer is only whether there is a child. WNOWAIT leaves it.
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    unsafe { libc::waitid(libc::P_ALL, 0, ptr::null_mut(), flags) == 0 }
}

/// Begins a session of its own, without a terminal.
pub(crate) fn new_session() {
    // SAFETY: takes no arguments.
    unsafe { libc::setsid() };
}

/// Forks. The child gets 0.
pub(crate) fn fork() -> io::Result<Pid> {
    // SAFETY: the agent has a single thread, so the child's memory is in a consistent state.
    check(unsafe { libc::fork() })
}

/// Blocks the signals and makes a descriptor that delivers them.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: a zeroed sigset_t is a valid argument to sigemptyset, which initialises it; all pointers are to
    // that live set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        // Whoever started the agent may have left this ignored, and then no child could be waited for.
        libc::signal(SIGCHLD, libc::SIG_DFL);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()))?;
        check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)).map(own)
    }
}

/// Makes reads and writes return at once, or wait.
pub(crate) fn set_nonblocking(fd: impl AsFd, yes: bool) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: both calls take a live descriptor and numbers.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        let flags = if yes { flags | O_NONBLOCK } else { flags & !O_NONBLOCK };
        check(libc::fcntl(fd, libc::F_SETFL, flags)).map(drop)
    }
}

/// Makes `target` another name of the descriptor, as dup2(2) does.
pub(crate) fn duplicate_to(fd: impl AsFd, target: i32) -> io::Result<()> {
    // SAFETY: only ever called for the numbers 0, 1 and 2, which nothing in the agent owns.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }).map(drop)
}

/// Waits until the descriptor can be read, at most so many milliseconds.
pub(crate) fn wait_readable(fd: impl AsFd, milliseconds: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer is to one live pollfd.
    match check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        other => other.map(|ready| ready > 0),
    }
}

/// Whether the other end of a channel is open, as poll(2) tells it.
pub(crate) fn is_hung_up(fd: impl AsFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: the pointer is to one live pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLHUP != 0 }
}

/// Opens a socket on which the kernel tells of devices that appear.
pub(crate) fn device_events() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a zeroed sockaddr_nl is valid; pointer and length passed to bind are of that live value.
    unsafe {
        let socket = own(check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT))?);
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = 1;
        let len = size_of_val(&address) as libc::socklen_t;
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len))?;
        Ok(socket)
    }
}

/// Brings the loopback interface up.
pub(crate) fn raise_loopback() -> io::Result<()> {
    // SAFETY: a zeroed ifreq is valid; both ioctls read and write only that live value, whose name ends in
    // NUL because it was zeroed; the flags are the union's active field after SIOCGIFFLAGS.
    unsafe {
        let socket = own(check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request)).map(drop)
    }
}

/// Opens a new terminal: the agent's end and the program's.
pub(crate) fn open_pty(size: WindowSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the path ends in NUL; the ioctls read one live integer or take a number.
    let (master, slave) = unsafe {
        let master = own(check(libc::open(c"/dev/ptmx".as_ptr(), flags))?);
        let unlock: libc::c_int = 0;
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock))?;
        let slave = own(check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?);
        (master, slave)
    };
    resize_pty(&master, size)?;
    Ok((master, slave))
}

/// Gives a terminal another size.
pub(crate) fn resize_pty(master: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads the live winsize that the pointer is to.
    let result = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    check(result).map(drop)
}

/// What an epoll instance reports: the number the descriptor was added under.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes a number.
        check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(own).map(Self)
    }

    /// Reports each time that the descriptor becomes ready, not as long as it is: an end that has hung up
    /// would be reported without end otherwise. It is forgotten when it is closed.
    pub(crate) fn add(&self, fd: impl AsFd, events: i32, token: u64) -> io::Result<()> {
        let events = (events | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: token };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: both descriptors are live and the pointer is to a live event.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        check(result).map(drop)
    }

    /// Waits for events and passes their numbers on; a negative timeout waits for ever.
    pub(crate) fn wait(&self, milliseconds: i32, tokens: &mut Vec<u64>) -> io::Result<()> {
        const MAX: usize = 64;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; MAX];
        let fd = self.0.as_raw_fd();
        // SAFETY: the pointer is to MAX live events.
        let count = check(unsafe { libc::epoll_wait(fd, events.as_mut_ptr(), MAX as i32, milliseconds) });
        tokens.clear();
        match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => {
                let count = other? as usize;
                tokens.extend(events.iter().take(count).map(|event| event.u64));
                Ok(())
            }
        }
    }
}

/// A program to start, complete but for the start: after it only the kernel is called.
pub(crate) struct Plan {
    /// Files to try, in this order.
    pub(crate) programs: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// Where to be; each is tried in this order.
    pub(crate) directories: Vec<CString>,
    /// User, group and further groups to become.
    pub(crate) identity: Option<(u32, u32, Vec<u32>)>,
    /// What become 0, 1 and 2.
    pub(crate) stdio: [OwnedFd; 3],
    /// Whether 0 becomes the controlling terminal.
    pub(crate) terminal: bool,
}

/// Which step of starting a program failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Stdio,
    Identity,
    Directory,
    Execute,
}

struct Child<'a> {
    plan: &'a Plan,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    failure: Option<(Step, i32)>,
}

const CHILD_STACK: usize = 64 * 1024;

/// Starts a program in a session of its own.
///
/// The child shares the agent's memory until it executes, while the agent waits: nothing is copied, and the
/// child tells why it failed by writing it down.
pub(crate) fn spawn(plan: &Plan) -> Result<Pid, (Step, io::Error)> {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>()
    };
    let mut child = Child { plan, argv: pointers(&plan.argv), env: pointers(&plan.env), failure: None };
    let mut stack = vec![0u128; CHILD_STACK / 16];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | SIGCHLD;
    // SAFETY: the stack is live, aligned to 16 bytes and passed by its upper end. CLONE_VFORK suspends this
    // thread until the child has executed or ended, so that the child's use of `child`, `plan` and the stack
    // is exclusive and ends before they do.
    let pid = unsafe {
        let top = stack.as_mut_ptr_range().end;
        libc::clone(run_child, top.cast(), flags, (&raw mut child).cast())
    };
    let pid = check(pid).map_err(|error| (Step::Execute, error))?;
    match child.failure {
        None => Ok(pid),
        Some((step, errno)) => {
            let mut status = 0;
            // SAFETY: the child has ended; the pointer is to a live integer.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            Err((step, io::Error::from_raw_os_error(errno)))
        }
    }
}

extern "C" fn run_child(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `spawn` passes a pointer to a live Child and does not touch it meanwhile.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    let failure = become_program(child);
    child.failure = Some(failure);
    // SAFETY: ends the child alone, without running anything of the agent's.
    unsafe { libc::_exit(127) }
}

/// Runs in the child, in the agent's memory: system calls only, nothing that allocates or locks.
fn become_program(child: &Child<'_>) -> (Step, i32) {
    let plan = child.plan;
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(ENOSYS);
    // SAFETY: every pointer is to strings and arrays of `plan` and `child`, which end in NUL or null and
    // outlive the call. Identities are set by the bare system calls, because those of libc would set them in
    // the agent as well. Signal dispositions belong to the child, as CLONE_SIGHAND is not given.
    unsafe {
        libc::setsid();
        for (target, fd) in plan.stdio.iter().enumerate() {
            if libc::dup2(fd.as_raw_fd(), target as i32) < 0 {
                return (Step::Stdio, errno());
            }
        }
        if plan.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return (Step::Stdio, errno());
        }
        if let Some((uid, gid, groups)) = &plan.identity
            && (libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setgid, *gid) < 0
                || libc::syscall(libc::SYS_setuid, *uid) < 0)
        {
            return (Step::Identity, errno());
        }
        if !plan.directories.iter().any(|directory| libc::chdir(directory.as_ptr()) == 0) {
            return (Step::Directory, errno());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut failure = ENOENT;
        for program in &plan.programs {
            libc::execve(program.as_ptr(), child.argv.as_ptr(), child.env.as_ptr());
            // As the shell does: a file that may not be executed counts for more than one that is absent.
            let this = errno();
            if failure == ENOENT || (this != ENOENT && this != ENOTDIR) {
                failure = this;
            }
        }
        (Step::Execute, failure)
    }
}

/// Copies the extended attributes of the file at `from` to an open one, ACLs and labels among them.
pub(crate) fn copy_xattrs(from: &CStr, to: impl AsFd) -> io::Result<()> {
    let names = sized(|buf, len| {
        // SAFETY: the path ends in NUL; pointer and length are of one live buffer.
        unsafe { libc::listxattr(from.as_ptr(), buf.cast(), len) }
    })?;
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let value = sized(|buf, len| {
            // SAFETY: path and name end in NUL; pointer and length are of one live buffer.
            unsafe { libc::getxattr(from.as_ptr(), name.as_ptr(), buf.cast(), len) }
        })?;
        let fd = to.as_fd().as_raw_fd();
        // SAFETY: the name ends in NUL; pointer and length are of one live buffer.
        check(unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })?;
    }
    Ok(())
}

/// The largest list or value of extended attributes that Linux has.
const XATTR_MAX: usize = 65536;

fn sized(mut get: impl FnMut(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0; XATTR_MAX];
    let len = get(buf.as_mut_ptr(), buf.len());
    if len < 0 {
        return match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOTSUP) => Ok(Vec::new()),
            error => Err(error),
        };
    }
    buf.truncate(len as usize);
    Ok(buf)
}
