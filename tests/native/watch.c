/* Preloaded into a process: appends to the file $WATCH_LOG every name that it looks up, every address that it sends to
   and every path that it makes or opens for writing. One line each: lookup NAME, connect ADDRESS PORT, write PATH. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))

static void say(const char *kind, const char *what) {
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", kind, what);
    const char *log = getenv("WATCH_LOG");
    int file = log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (file < 0) return;
    if (syscall(SYS_write, file, line, length) < 0) abort();
    close(file);
}

static void say_path(int folder, const char *path) {
    char whole[2 * PATH_MAX] = "", link[64];
    if (path[0] != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        if (readlink(link, whole, PATH_MAX) < 0) return;
        strcat(whole, "/");
    }
    strncat(whole, path, PATH_MAX - 1);
    say("write", whole);
}

static void say_address(const struct sockaddr *to) {
    char address[INET6_ADDRSTRLEN] = "", whole[INET6_ADDRSTRLEN + 8];
    if (!to || (to->sa_family != AF_INET && to->sa_family != AF_INET6)) return;
    const void *host = to->sa_family == AF_INET ? (const void *)&((const struct sockaddr_in *)to)->sin_addr
                                                : (const void *)&((const struct sockaddr_in6 *)to)->sin6_addr;
    inet_ntop(to->sa_family, host, address, sizeof address);
    snprintf(whole, sizeof whole, "%s %d", address, ntohs(((const struct sockaddr_in *)to)->sin_port));
    say("connect", whole);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (node && !(hints && hints->ai_flags & AI_NUMERICHOST)) say("lookup", node);
    return NEXT(getaddrinfo)(node, service, hints, found);
}
struct hostent *gethostbyname(const char *name) { say("lookup", name); return NEXT(gethostbyname)(name); }

int connect(int at, const struct sockaddr *to, socklen_t size) { say_address(to); return NEXT(connect)(at, to, size); }
ssize_t sendto(int at, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    say_address(to);
    return NEXT(sendto)(at, data, size, flags, to, length);
}
ssize_t sendmsg(int at, const struct msghdr *message, int flags) {
    say_address(message->msg_name);
    return NEXT(sendmsg)(at, message, flags);
}

#define MODE(flags, last) mode_t mode = 0; if ((flags) & O_CREAT) { va_list more; va_start(more, last); mode = va_arg(more, mode_t); va_end(more); }
int open(const char *path, int flags, ...) { MODE(flags, flags) if (WRITES(flags)) say_path(AT_FDCWD, path); return NEXT(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, flags) if (WRITES(flags)) say_path(AT_FDCWD, path); return NEXT(open64)(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, flags) if (WRITES(flags)) say_path(at, path); return NEXT(openat)(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, flags) if (WRITES(flags)) say_path(at, path); return NEXT(openat64)(at, path, flags, mode); }
FILE *fopen(const char *path, const char *mode) { if (strpbrk(mode, "wa+")) say_path(AT_FDCWD, path); return NEXT(fopen)(path, mode); }
FILE *fopen64(const char *path, const char *mode) { if (strpbrk(mode, "wa+")) say_path(AT_FDCWD, path); return NEXT(fopen64)(path, mode); }
int mkdir(const char *path, mode_t mode) { say_path(AT_FDCWD, path); return NEXT(mkdir)(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { say_path(at, path); return NEXT(mkdirat)(at, path, mode); }
int rename(const char *from, const char *to) { say_path(AT_FDCWD, to); return NEXT(rename)(from, to); }
int renameat(int from, const char *old, int at, const char *path) { say_path(at, path); return NEXT(renameat)(from, old, at, path); }
int link(const char *from, const char *to) { say_path(AT_FDCWD, to); return NEXT(link)(from, to); }
int symlink(const char *to, const char *path) { say_path(AT_FDCWD, path); return NEXT(symlink)(to, path); }
