/* Fails one call, or all from one on, that touches a file below given folders; for LD_PRELOAD.
 *
 * EIO fails the N-th call. ENOSPC fails the N-th of the calls that take space and all such calls after it, as a full
 * disk does. Every name that Python, Rust and C libraries call is wrapped, with and without the suffix 64. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long number, count;
static int error, armed;
static char below[4096], failed[PATH_MAX + 64];

/* Counts from here on; `folders` are absolute paths without links, separated by colons. */
void fault_arm(long at, int with, const char *folders) {
  number = at, error = with, count = 0, failed[0] = 0;
  snprintf(below, sizeof below, "%s", folders);
  armed = 1;
}
long fault_count(void) { armed = 0; return count; }
const char *fault_said(void) { return failed; }

static void name_of(int fd, char *place, size_t size) {
  char link[64];
  snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, place, size - 1);
  place[length > 0 ? length : 0] = 0;
}

static int touches(const char *place) {
  for (const char *folder = below; *folder;) {
    size_t length = strcspn(folder, ":");
    if (!strncmp(place, folder, length) && (!place[length] || place[length] == '/')) return 1;
    folder += length + (folder[length] == ':');
  }
  return 0;
}

static int due(const char *call, int takes_space, int fd, const char *path) {
  char place[2 * PATH_MAX];
  int before = errno, now = 0;
  if (path && *path == '/') {
    snprintf(place, sizeof place, "%s", path);
  } else {
    name_of(fd, place, PATH_MAX);
    if (path && *path) snprintf(place + strlen(place), PATH_MAX, "/%s", path);
  }
  if (touches(place) && (error != ENOSPC || takes_space)) {
    long n = __sync_add_and_fetch(&count, 1);
    now = number && (error == ENOSPC ? n >= number : n == number);
    if (now && !failed[0]) snprintf(failed, sizeof failed, "%s %.*s", call, PATH_MAX, place);
  }
  errno = now ? error : before;
  return now;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRAP(type, bad, name, takes_space, fd, path, parameters, arguments) \
  type name parameters { \
    REAL(name); \
    return armed && due(#name, takes_space, fd, path) ? bad : real arguments; \
  }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    return armed && due(#name, flags & O_CREAT, AT_FDCWD, path) ? -1 : real(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int dir, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    return armed && due(#name, flags & O_CREAT, dir, path) ? -1 : real(dir, path, flags, mode); \
  }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
WRAP(FILE *, NULL, fopen, *mode != 'r', AT_FDCWD, path, (const char *path, const char *mode), (path, mode))
WRAP(FILE *, NULL, fopen64, *mode != 'r', AT_FDCWD, path, (const char *path, const char *mode), (path, mode))
WRAP(ssize_t, -1, read, 0, fd, NULL, (int fd, void *to, size_t n), (fd, to, n))
WRAP(ssize_t, -1, pread, 0, fd, NULL, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
WRAP(ssize_t, -1, pread64, 0, fd, NULL, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
WRAP(ssize_t, -1, readv, 0, fd, NULL, (int fd, const struct iovec *to, int n), (fd, to, n))
WRAP(ssize_t, -1, write, 1, fd, NULL, (int fd, const void *from, size_t n), (fd, from, n))
WRAP(ssize_t, -1, pwrite, 1, fd, NULL, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
WRAP(ssize_t, -1, pwrite64, 1, fd, NULL, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
WRAP(ssize_t, -1, writev, 1, fd, NULL, (int fd, const struct iovec *from, int n), (fd, from, n))
WRAP(int, -1, fsync, 1, fd, NULL, (int fd), (fd))
WRAP(int, -1, fdatasync, 1, fd, NULL, (int fd), (fd))
WRAP(int, -1, ftruncate, 0, fd, NULL, (int fd, off_t n), (fd, n))
WRAP(int, -1, ftruncate64, 0, fd, NULL, (int fd, off64_t n), (fd, n))
WRAP(int, -1, truncate64, 0, AT_FDCWD, path, (const char *path, off64_t n), (path, n))
WRAP(int, -1, rename, 1, AT_FDCWD, a, (const char *a, const char *b), (a, b))
WRAP(int, -1, renameat, 1, x, a, (int x, const char *a, int y, const char *b), (x, a, y, b))
WRAP(int, -1, unlink, 0, AT_FDCWD, path, (const char *path), (path))
WRAP(int, -1, unlinkat, 0, dir, path, (int dir, const char *path, int flags), (dir, path, flags))
WRAP(int, -1, rmdir, 0, AT_FDCWD, path, (const char *path), (path))
WRAP(int, -1, mkdir, 1, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
WRAP(int, -1, mkdirat, 1, dir, path, (int dir, const char *path, mode_t mode), (dir, path, mode))
WRAP(int, -1, link, 1, AT_FDCWD, a, (const char *a, const char *b), (a, b))
WRAP(int, -1, linkat, 1, x, a, (int x, const char *a, int y, const char *b, int f), (x, a, y, b, f))
WRAP(int, -1, chmod, 0, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
WRAP(int, -1, stat, 0, AT_FDCWD, path, (const char *path, struct stat *to), (path, to))
WRAP(int, -1, stat64, 0, AT_FDCWD, path, (const char *path, struct stat64 *to), (path, to))
WRAP(int, -1, lstat, 0, AT_FDCWD, path, (const char *path, struct stat *to), (path, to))
WRAP(int, -1, lstat64, 0, AT_FDCWD, path, (const char *path, struct stat64 *to), (path, to))
WRAP(int, -1, fstat, 0, fd, NULL, (int fd, struct stat *to), (fd, to))
WRAP(int, -1, fstat64, 0, fd, NULL, (int fd, struct stat64 *to), (fd, to))
WRAP(int, -1, fstatat, 0, dir, path, (int dir, const char *path, struct stat *to, int f), (dir, path, to, f))
WRAP(int, -1, fstatat64, 0, dir, path, (int dir, const char *path, struct stat64 *to, int f), (dir, path, to, f))
WRAP(int, -1, statx, 0, dir, path, (int dir, const char *path, int f, unsigned m, struct statx *to), (dir, path, f, m, to))
WRAP(DIR *, NULL, opendir, 0, AT_FDCWD, path, (const char *path), (path))
WRAP(DIR *, NULL, fdopendir, 0, fd, NULL, (int fd), (fd))
WRAP(struct dirent *, NULL, readdir, 0, dirfd(dir), NULL, (DIR * dir), (dir))
WRAP(struct dirent64 *, NULL, readdir64, 0, dirfd(dir), NULL, (DIR * dir), (dir))
WRAP(void *, MAP_FAILED, mmap, 0, fd, NULL, (void *to, size_t n, int p, int f, int fd, off_t at), (to, n, p, f, fd, at))
WRAP(void *, MAP_FAILED, mmap64, 0, fd, NULL, (void *to, size_t n, int p, int f, int fd, off64_t at), (to, n, p, f, fd, at))

int close(int fd) { /* it is closed whatever it says, as Linux does it */
  REAL(close);
  int now = armed && due("close", 1, fd, NULL), done = real(fd);
  if (now) errno = error;
  return now ? -1 : done;
}
