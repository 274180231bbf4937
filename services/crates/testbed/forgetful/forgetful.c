// A disk that forgets unsynced writes: the half that lives inside the process under test.
//
// Preloaded, it records what every change below one directory replaces, before the change is made. The other half (the
// Rust module `forgetful`) reads the record after the process was killed and takes back what no sync has covered. All
// judgement is there; here is only the faithful record.
//
// It does not wrap libc functions. Crates that enter the kernel by themselves (rustix, and through it tempfile) would
// pass such wrappers unseen, so a seccomp filter turns every call that can change a file into SIGSYS, and the handler
// makes the call in the program's place. The filter lets one instruction through: the `syscall` in a stub at a fixed
// address, by which this library itself enters the kernel. The address is fixed because a filter outlives exec.
//
// Absent on purpose: malloc, stdio, errno and thread-local state (the handler may run anywhere), real judgement about
// durability, and support for several processes at once (refused by a lock on the record).

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>

#ifndef __x86_64__
#error "the disk that forgets is written for x86_64 Linux only"
#endif

// ---- entering the kernel past our own filter -----------------------------------------------------------------------

#define STUB_ADDRESS 0x10000000000ul
// System V arguments to kernel arguments, then `syscall; ret`. The filter sees the address after `syscall`.
static const unsigned char STUB_CODE[] = {0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6, 0x48, 0x89, 0xca, 0x4d,
                                          0x89, 0xc2, 0x4d, 0x89, 0xc8, 0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05, 0xc3};
#define STUB_RETURN (STUB_ADDRESS + sizeof STUB_CODE - 1)

typedef long (*kernel_entry)(long nr, long a, long b, long c, long d, long e, long f);
#define K6(nr, a, b, c, d, e, f)                                                                                       \
    (((kernel_entry)STUB_ADDRESS)((nr), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)))
#define K(nr, a, b, c, d) K6(nr, a, b, c, d, 0, 0)

static void complain(const char *what, const char *detail) {
    const char *parts[] = {"forgetful: ", what, detail ? ": " : "", detail ? detail : "", "\n"};
    for (int i = 0; i < 5; i++) K(SYS_write, 2, parts[i], strlen(parts[i]), 0);
}

// The simulation can no longer be trusted, so the process must not go on.
static void __attribute__((noreturn)) die(const char *what, const char *detail) {
    complain(what, detail);
    for (;;) K(SYS_exit_group, 134, 0, 0, 0);
}

// ---- one lock over record and change, so that the record's order is the order of the changes ----------------------

static int lock_word; // 0 free, 1 held, 2 held and waited for

static void lock(void) {
    int seen = 0;
    if (__atomic_compare_exchange_n(&lock_word, &seen, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) return;
    while (__atomic_exchange_n(&lock_word, 2, __ATOMIC_ACQUIRE) != 0)
        K(SYS_futex, &lock_word, FUTEX_WAIT_PRIVATE, 2, 0);
}

static void unlock(void) {
    if (__atomic_exchange_n(&lock_word, 0, __ATOMIC_RELEASE) == 2) K(SYS_futex, &lock_word, FUTEX_WAKE_PRIVATE, 1, 0);
}

// ---- the record ---------------------------------------------------------------------------------------------------

enum { UNDO = 1, CREATE = 2, REMOVE = 3, RENAME = 4, MKDIR = 5, SYNC = 6 };
enum { ZEROS = 1, DIRECTORY = 2 };

struct header {      // little endian; journal.rs reads the same layout
    uint32_t length; // of header and payload
    uint8_t kind, flags;
    uint16_t path_length; // the payload starts with a path of this length
    uint64_t inode;
    uint64_t old_length; // UNDO: of the file. SYNC: length of the record when the sync was entered
    uint64_t offset;     // UNDO: where the old bytes stood. RENAME: length of the second path
    uint64_t count;      // UNDO: how many old bytes
    uint64_t changed;    // UNDO: how many bytes the call is about to change, in its first record; 0 in the rest
};

static char watched[4096], pool_path[4096];
static size_t watched_length;
static int log_fd = -1, pool_fd = -1;
static uint64_t log_length;

static void record(struct header h, const char *path, const void *payload, size_t payload_length) {
    h.path_length = path ? strlen(path) : 0;
    h.length = sizeof h + h.path_length + payload_length;
    struct iovec parts[] = {{&h, sizeof h}, {(void *)path, h.path_length}, {(void *)payload, payload_length}};
    if (K(SYS_writev, log_fd, parts, 3, 0) != (long)h.length) die("the record cannot be written", 0);
    log_length += h.length;
}

// ---- which files are watched --------------------------------------------------------------------------------------

// Every watched file has a second name in the pool, its inode number. So its content outlives unlink, its number is
// never given to another file, and "is it watched" is "is it in the pool".
#define KNOWN_SLOTS (1u << 16)
static struct { uint64_t device, inode; } known[KNOWN_SLOTS];

static void decimal(uint64_t n, char *out) {
    char digits[24];
    int i = 0;
    do digits[i++] = '0' + n % 10; while (n /= 10);
    while (i) *out++ = digits[--i];
    *out = 0;
}

static void remember(const struct stat *st) { // a full neighbourhood only costs a look into the pool each time
    for (uint64_t i = 0, slot = st->st_ino * 0x9E3779B97F4A7C15ull; i < 64; i++) {
        unsigned at = (slot + i) % KNOWN_SLOTS;
        if (known[at].inode && (known[at].inode != st->st_ino || known[at].device != st->st_dev)) continue;
        known[at].device = st->st_dev;
        __atomic_store_n(&known[at].inode, st->st_ino, __ATOMIC_RELEASE);
        return;
    }
}

static int remembered(const struct stat *st) {
    for (uint64_t i = 0, slot = st->st_ino * 0x9E3779B97F4A7C15ull; i < 64; i++) {
        unsigned at = (slot + i) % KNOWN_SLOTS;
        uint64_t inode = __atomic_load_n(&known[at].inode, __ATOMIC_ACQUIRE);
        if (!inode) return 0;
        if (inode == st->st_ino && known[at].device == st->st_dev) return 1;
    }
    return 0;
}

// The part of an absolute path below the watched directory ("" for itself), or null.
static const char *below(const char *path) {
    if (strncmp(path, watched, watched_length) != 0) return 0;
    if (path[watched_length] == 0) return path + watched_length;
    return path[watched_length] == '/' ? path + watched_length + 1 : 0;
}

static const char *fd_path(int fd, char out[4096]) {
    char link[64] = "/proc/self/fd/";
    decimal(fd, link + strlen(link));
    long n = K(SYS_readlink, link, out, 4095, 0);
    if (n < 0) return 0;
    out[n] = 0;
    return below(out);
}

// Where the last name of `path` stands, with its folder resolved. Null when that is not below the watched directory.
static const char *name_path(int dir, const char *path, char out[4096]) {
    char folder[4096];
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t base = end;
    while (base > 0 && path[base - 1] != '/') base--;
    if (end >= sizeof folder) return 0;
    if (base == 0) memcpy(folder, ".", 2);
    else memcpy(folder, path, base), folder[base] = 0;
    int fd = K(SYS_openat, dir, folder, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd < 0) return 0;
    const char *inside = fd_path(fd, out);
    K(SYS_close, fd, 0, 0, 0);
    size_t n = strlen(out);
    if (!inside || n + 2 + end - base > 4096) return 0;
    out[n] = '/';
    memcpy(out + n + 1, path + base, end - base);
    out[n + 1 + end - base] = 0;
    return below(out);
}

static void adopt(int fd, const struct stat *st) {
    char from[64] = "/proc/self/fd/", name[24];
    decimal(fd, from + strlen(from));
    decimal(st->st_ino, name);
    long r = K6(SYS_linkat, AT_FDCWD, from, pool_fd, name, AT_SYMLINK_FOLLOW, 0);
    if (r < 0 && r != -EEXIST) die("a new file cannot be linked into the pool", name);
    remember(st);
}

static int in_pool(const struct stat *st) {
    struct stat twin;
    char name[24];
    if (remembered(st)) return 1;
    decimal(st->st_ino, name);
    if (K(SYS_newfstatat, pool_fd, name, &twin, AT_SYMLINK_NOFOLLOW) < 0) return 0;
    if (twin.st_ino != st->st_ino || twin.st_dev != st->st_dev) return 0;
    remember(st);
    return 1;
}

static int is_watched(int fd, struct stat *st) {
    if (K(SYS_fstat, fd, st, 0, 0) < 0 || !S_ISREG(st->st_mode)) return 0;
    if (in_pool(st)) return 1;
    char path[4096]; // a file below the directory which this library has not seen appear would be forgotten wrongly
    if (st->st_nlink > 0 && fd_path(fd, path)) die("a file came to be behind the library's back", path);
    return 0;
}

// ---- undo: what the change replaces -------------------------------------------------------------------------------

// The program's own descriptor may be write-only, and its position is the program's: old bytes are read by the pool's
// name.
static int reader(uint64_t inode) {
    static struct { uint64_t inode; int fd; } readers[8];
    static unsigned next;
    for (int i = 0; i < 8; i++)
        if (readers[i].inode == inode) return readers[i].fd;
    char name[24];
    decimal(inode, name);
    int fd = K(SYS_openat, pool_fd, name, O_RDONLY | O_CLOEXEC, 0), at = next++ % 8;
    if (fd < 0) die("a watched file cannot be read", name);
    if (readers[at].inode) K(SYS_close, readers[at].fd, 0, 0, 0);
    readers[at].inode = inode;
    readers[at].fd = fd;
    return fd;
}

static void record_undo(const struct stat *st, uint64_t offset, uint64_t count) {
    static char old[256 * 1024];
    uint64_t size = st->st_size, end = offset + count < size ? offset + count : size;
    struct header h = {.kind = UNDO, .inode = st->st_ino, .old_length = size, .offset = offset, .changed = count};
    if (offset >= end) return record(h, 0, 0, 0);
    int fd = reader(st->st_ino);
    while (h.offset < end) {
        long data = K(SYS_lseek, fd, h.offset, SEEK_DATA, 0); // holes cost nothing
        if (data < 0 || (uint64_t)data > end) data = end;
        if ((uint64_t)data > h.offset) {
            h.flags = ZEROS;
            h.count = data - h.offset;
            record(h, 0, 0, 0);
        } else {
            h.count = end - h.offset < sizeof old ? end - h.offset : sizeof old;
            if (K(SYS_pread64, fd, old, h.count, h.offset) != (long)h.count) die("old bytes cannot be read", 0);
            int zeros = old[0] == 0 && memcmp(old, old + 1, h.count - 1) == 0;
            h.flags = zeros ? ZEROS : 0;
            record(h, 0, old, zeros ? 0 : h.count);
        }
        h.offset += h.count;
        h.changed = 0;
    }
}

static void record_sync(int fd, uint64_t inode, int flags, uint64_t since) {
    char path[4096];
    const char *inside = fd_path(fd, path);
    struct header h = {.kind = SYNC, .flags = flags, .inode = inode, .old_length = since};
    record(h, inside ? inside : "", 0, 0);
}

// ---- the calls, made in the program's place -----------------------------------------------------------------------

static uint64_t total(const struct iovec *parts, int n) {
    uint64_t sum = 0;
    for (int i = 0; i < n; i++) sum += parts[i].iov_len;
    return sum;
}

static long do_write(long nr, long *a) {
    struct stat st;
    if (!is_watched(a[0], &st)) return K6(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (nr == SYS_pwritev2 && a[5] != 0) return -EOPNOTSUPP;
    uint64_t count = nr == SYS_write || nr == SYS_pwrite64 ? (uint64_t)a[2] : total((struct iovec *)a[1], a[2]);
    int here = nr == SYS_write || nr == SYS_writev || (nr == SYS_pwritev2 && a[3] == -1);
    lock();
    long flags = K(SYS_fcntl, a[0], F_GETFL, 0, 0);
    K(SYS_fstat, a[0], &st, 0, 0);
    uint64_t offset = flags & O_APPEND ? st.st_size : here ? K(SYS_lseek, a[0], 0, SEEK_CUR, 0) : a[3];
    record_undo(&st, offset, count);
    long r = K6(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (r > 0 && (flags & O_DSYNC)) record_sync(a[0], st.st_ino, 0, log_length);
    unlock();
    return r;
}

static long do_ftruncate(int fd, uint64_t length) {
    struct stat st;
    if (!is_watched(fd, &st)) return K(SYS_ftruncate, fd, length, 0, 0);
    lock();
    K(SYS_fstat, fd, &st, 0, 0);
    uint64_t size = st.st_size, from = length < size ? length : size;
    record_undo(&st, from, (length < size ? size : length) - from);
    long r = K(SYS_ftruncate, fd, length, 0, 0);
    unlock();
    return r;
}

static long do_truncate(const char *path, uint64_t length) {
    int fd = K(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0) return fd;
    long r = do_ftruncate(fd, length);
    K(SYS_close, fd, 0, 0, 0);
    return r;
}

static long do_sync(long nr, int fd) {
    struct stat st;
    char path[4096];
    int directory = K(SYS_fstat, fd, &st, 0, 0) == 0 && S_ISDIR(st.st_mode) && fd_path(fd, path);
    if (!directory && !is_watched(fd, &st)) return K(nr, fd, 0, 0, 0);
    lock(); // what is written while the sync is under way is not covered by it
    uint64_t since = log_length;
    const char *inside = fd_path(fd, path);
    unlock();
    long r = K(nr, fd, 0, 0, 0);
    if (r < 0) return r;
    lock();
    struct header h = {.kind = SYNC, .flags = directory ? DIRECTORY : 0, .inode = st.st_ino, .old_length = since};
    record(h, inside ? inside : "", 0, 0);
    unlock();
    return r;
}

static long do_open(int dir, const char *path, int flags, mode_t mode) {
    char buffer[4096];
    struct stat st;
    if (!name_path(dir, path, buffer)) return K(SYS_openat, dir, path, flags, mode);
    lock();
    int fd = K(SYS_openat, dir, path, flags & ~O_TRUNC, mode);
    if (fd >= 0 && K(SYS_fstat, fd, &st, 0, 0) == 0 && S_ISREG(st.st_mode) && st.st_nlink > 0) {
        const char *inside = fd_path(fd, buffer);
        if (inside && !in_pool(&st)) {
            adopt(fd, &st);
            record((struct header){.kind = CREATE, .inode = st.st_ino}, inside, 0, 0);
        }
        if ((flags & O_TRUNC) && st.st_size > 0) {
            if (inside) record_undo(&st, 0, st.st_size);
            long r = K(SYS_ftruncate, fd, 0, 0, 0);
            if (r < 0) {
                K(SYS_close, fd, 0, 0, 0);
                fd = r;
            }
        }
    }
    unlock();
    return fd;
}

static long do_remove(int dir, const char *path, int flags) {
    char buffer[4096];
    const char *inside = name_path(dir, path, buffer);
    if (!inside) return K(SYS_unlinkat, dir, path, flags, 0);
    lock();
    long r = K(SYS_unlinkat, dir, path, flags, 0);
    if (r == 0) record((struct header){.kind = REMOVE}, inside, 0, 0);
    unlock();
    return r;
}

static long do_mkdir(int dir, const char *path, mode_t mode) {
    char buffer[4096];
    const char *inside = name_path(dir, path, buffer);
    if (!inside) return K(SYS_mkdirat, dir, path, mode, 0);
    lock();
    long r = K(SYS_mkdirat, dir, path, mode, 0);
    if (r == 0) record((struct header){.kind = MKDIR}, inside, 0, 0);
    unlock();
    return r;
}

static long do_rename(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    char from_buffer[4096], to_buffer[4096];
    const char *old = name_path(from_dir, from, from_buffer), *new = name_path(to_dir, to, to_buffer);
    if (!old && !new) return K6(SYS_renameat2, from_dir, from, to_dir, to, flags, 0);
    if (!old || !new) return -EXDEV; // the watched directory is a disk of its own
    if (flags & ~RENAME_NOREPLACE) return -EINVAL;
    lock();
    long r = K6(SYS_renameat2, from_dir, from, to_dir, to, flags, 0);
    if (r == 0) record((struct header){.kind = RENAME, .offset = strlen(new)}, old, new, strlen(new));
    unlock();
    return r;
}

static long do_link(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    char buffer[4096];
    struct stat st;
    const char *inside = name_path(to_dir, to, buffer);
    lock();
    long r = K6(SYS_linkat, from_dir, from, to_dir, to, flags, 0);
    if (r == 0 && inside) {
        K(SYS_newfstatat, to_dir, to, &st, AT_SYMLINK_NOFOLLOW);
        if (!in_pool(&st)) die("a file was linked in from outside the watched directory", inside);
        record((struct header){.kind = CREATE, .inode = st.st_ino}, inside, 0, 0);
    }
    unlock();
    return r;
}

// Calls a file system may decline; every careful caller then goes by a way that is recorded.
static long declined(int fd, long nr, long *a, long answer) {
    struct stat st;
    return is_watched(fd, &st) ? answer : K6(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static long do_symlink(const char *target, int dir, const char *path) {
    char buffer[4096];
    return name_path(dir, path, buffer) ? -EPERM : K(SYS_symlinkat, target, dir, path, 0);
}

static long do_mknod(int dir, const char *path, mode_t mode, dev_t device) {
    char buffer[4096];
    return name_path(dir, path, buffer) ? -EPERM : K(SYS_mknodat, dir, path, mode, device);
}

static long do_mmap(long *a) {
    struct stat st;
    if ((a[2] & PROT_WRITE) && is_watched(a[4], &st)) die("a shared writable mapping of a watched file", 0);
    return K6(SYS_mmap, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static long dispatch(long nr, long *a) {
    switch (nr) {
    case SYS_write: case SYS_pwrite64: case SYS_writev: case SYS_pwritev: case SYS_pwritev2: return do_write(nr, a);
    case SYS_ftruncate: return do_ftruncate(a[0], a[1]);
    case SYS_truncate: return do_truncate((char *)a[0], a[1]);
    case SYS_fsync: case SYS_fdatasync: return do_sync(nr, a[0]);
    case SYS_open: return do_open(AT_FDCWD, (char *)a[0], a[1], a[2]);
    case SYS_creat: return do_open(AT_FDCWD, (char *)a[0], O_CREAT | O_WRONLY | O_TRUNC, a[1]);
    case SYS_openat: return do_open(a[0], (char *)a[1], a[2], a[3]);
    case SYS_unlink: return do_remove(AT_FDCWD, (char *)a[0], 0);
    case SYS_rmdir: return do_remove(AT_FDCWD, (char *)a[0], AT_REMOVEDIR);
    case SYS_unlinkat: return do_remove(a[0], (char *)a[1], a[2]);
    case SYS_mkdir: return do_mkdir(AT_FDCWD, (char *)a[0], a[1]);
    case SYS_mkdirat: return do_mkdir(a[0], (char *)a[1], a[2]);
    case SYS_rename: return do_rename(AT_FDCWD, (char *)a[0], AT_FDCWD, (char *)a[1], 0);
    case SYS_renameat: return do_rename(a[0], (char *)a[1], a[2], (char *)a[3], 0);
    case SYS_renameat2: return do_rename(a[0], (char *)a[1], a[2], (char *)a[3], a[4]);
    case SYS_link: return do_link(AT_FDCWD, (char *)a[0], AT_FDCWD, (char *)a[1], 0);
    case SYS_linkat: return do_link(a[0], (char *)a[1], a[2], (char *)a[3], a[4]);
    case SYS_symlink: return do_symlink((char *)a[0], AT_FDCWD, (char *)a[1]);
    case SYS_symlinkat: return do_symlink((char *)a[0], a[1], (char *)a[2]);
    case SYS_mknod: return do_mknod(AT_FDCWD, (char *)a[0], a[1], a[2]);
    case SYS_mknodat: return do_mknod(a[0], (char *)a[1], a[2], a[3]);
    case SYS_sendfile: return declined(a[0], nr, a, -EINVAL);
    case SYS_copy_file_range: case SYS_splice: return declined(a[2], nr, a, -EINVAL);
    case SYS_fallocate: return declined(a[0], nr, a, -EOPNOTSUPP);
    case SYS_ioctl: return declined(a[0], nr, a, -EOPNOTSUPP);
    case SYS_mmap: return do_mmap(a);
    default: return -ENOSYS; // io_uring and openat2 hide what they do from a filter
    }
}

static void on_sigsys(int signal, siginfo_t *info, void *context) {
    (void)signal;
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    long arguments[] = {r[REG_RDI], r[REG_RSI], r[REG_RDX], r[REG_R10], r[REG_R8], r[REG_R9]};
    r[REG_RAX] = dispatch(info->si_syscall, arguments);
}

// ---- the filter ---------------------------------------------------------------------------------------------------

#define LOAD(field) (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF_EQUAL(value, yes, no) (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define IF_ANY(bits, yes, no) (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), (yes), (no))
#define ANSWER(value) (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, (value))

static void install_filter(void) {
    static const int ALWAYS[] = {
        SYS_write, SYS_pwrite64, SYS_writev, SYS_pwritev, SYS_pwritev2, SYS_ftruncate, SYS_truncate, SYS_fsync,
        SYS_fdatasync, SYS_creat, SYS_unlink, SYS_rmdir, SYS_unlinkat, SYS_mkdir, SYS_mkdirat, SYS_rename, SYS_renameat,
        SYS_renameat2, SYS_link, SYS_linkat, SYS_symlink, SYS_symlinkat, SYS_mknod, SYS_mknodat, SYS_sendfile,
        SYS_copy_file_range, SYS_splice, SYS_fallocate, SYS_io_uring_setup, SYS_openat2};
    static struct sock_filter code[128];
    int n = 0;
    code[n++] = LOAD(arch);
    code[n++] = IF_EQUAL(AUDIT_ARCH_X86_64, 1, 0);
    code[n++] = ANSWER(SECCOMP_RET_KILL_PROCESS);
    code[n++] = LOAD(instruction_pointer);
    code[n++] = IF_EQUAL((uint32_t)STUB_RETURN, 0, 3);
    code[n++] = LOAD(instruction_pointer);
    code[n - 1].k += 4; // the upper half
    code[n++] = IF_EQUAL((uint32_t)(STUB_RETURN >> 32), 0, 1);
    code[n++] = ANSWER(SECCOMP_RET_ALLOW);
    code[n++] = LOAD(nr);
    for (unsigned i = 0; i < sizeof ALWAYS / sizeof *ALWAYS; i++) {
        code[n++] = IF_EQUAL(ALWAYS[i], 0, 1);
        code[n++] = ANSWER(SECCOMP_RET_TRAP);
    }
    // Opens that neither create nor truncate change nothing.
    code[n++] = IF_EQUAL(SYS_open, 0, 4);
    code[n++] = LOAD(args[1]);
    code[n++] = IF_ANY(O_CREAT | O_TRUNC, 0, 1);
    code[n++] = ANSWER(SECCOMP_RET_TRAP);
    code[n++] = ANSWER(SECCOMP_RET_ALLOW);
    code[n++] = IF_EQUAL(SYS_openat, 0, 4);
    code[n++] = LOAD(args[2]);
    code[n++] = IF_ANY(O_CREAT | O_TRUNC, 0, 1);
    code[n++] = ANSWER(SECCOMP_RET_TRAP);
    code[n++] = ANSWER(SECCOMP_RET_ALLOW);
    code[n++] = IF_EQUAL(SYS_ioctl, 0, 5);
    code[n++] = LOAD(args[1]);
    code[n++] = IF_EQUAL(FICLONE, 1, 0);
    code[n++] = IF_EQUAL(FICLONERANGE, 0, 1);
    code[n++] = ANSWER(SECCOMP_RET_TRAP);
    code[n++] = ANSWER(SECCOMP_RET_ALLOW);
    code[n++] = IF_EQUAL(SYS_mmap, 0, 4);
    code[n++] = LOAD(args[3]);
    code[n++] = IF_ANY(MAP_ANONYMOUS, 2, 0);
    code[n++] = IF_ANY(MAP_SHARED, 0, 1);
    code[n++] = ANSWER(SECCOMP_RET_TRAP);
    code[n++] = ANSWER(SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        die("the kernel refuses a seccomp filter", 0);
}

// A record that the kill of an earlier process cut short announces a change that was never made.
static void drop_torn_tail(void) {
    struct stat st;
    uint32_t length;
    K(SYS_fstat, log_fd, &st, 0, 0);
    while (K(SYS_pread64, log_fd, &length, sizeof length, log_length) == sizeof length) {
        if (length < sizeof(struct header) || log_length + length > (uint64_t)st.st_size) break;
        log_length += length;
    }
    K(SYS_ftruncate, log_fd, log_length, 0, 0);
}

static void __attribute__((constructor)) start(void) {
    const char *directory = getenv("WARDLINE_TEST_FORGETFUL_WATCHED"), *journal = getenv("WARDLINE_TEST_FORGETFUL_JOURNAL");
    if (!directory || !journal) return;
    void *stub = mmap((void *)STUB_ADDRESS, 4096, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (stub != (void *)STUB_ADDRESS) abort();
    memcpy(stub, STUB_CODE, sizeof STUB_CODE);
    if (mprotect(stub, 4096, PROT_READ | PROT_EXEC) != 0) abort();

    if (strlen(directory) >= sizeof watched || strlen(journal) + 8 >= sizeof pool_path) die("a path is too long", 0);
    strcpy(watched, directory);
    watched_length = strlen(watched);
    strcpy(pool_path, journal);
    strcat(pool_path, "/pool");
    pool_fd = K(SYS_openat, AT_FDCWD, pool_path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    strcpy(pool_path + strlen(journal), "/log");
    log_fd = K(SYS_openat, AT_FDCWD, pool_path, O_RDWR | O_APPEND | O_CLOEXEC, 0);
    if (pool_fd < 0 || log_fd < 0) die("the journal directory was not prepared", journal);
    if (K(SYS_flock, log_fd, LOCK_EX | LOCK_NB, 0, 0) != 0) die("another process writes to this journal", journal);
    drop_torn_tail();

    struct sigaction action = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, 0) != 0) die("no handler for SIGSYS", 0);
    install_filter();
}
