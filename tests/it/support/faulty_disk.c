/*
 * A disk that fails, or loses its power, at a moment that a test chooses. Loaded
 * into the program in front of the C library, it sees the calls that SQLite makes
 * on the files of one directory. The test and the disk share one page of memory,
 * the control file, so that faults can come and go while the program runs.
 *
 *   DISK_DIRECTORY  the absolute path of the directory whose files are watched
 *   DISK_CONTROL    the control file
 *   DISK_DURABLE    a directory for what would survive a loss of power
 *
 * What a file holds survives when it was synced; that it is there under its name,
 * when its directory was, after that. POSIX promises no more, though many file
 * systems do. A removal survives at once: what is removed is of no use.
 *
 * The calls that SQLite makes on memory that is mapped (of the -shm file) are not
 * seen, and neither are locks: none of that is on the disk after a loss of power.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* To sync a directory is to keep names. */
enum class { OPEN, READ, WRITE, SYNC, TRUNCATE, UNLINK, NAMES, RENAME, CLASSES = 8 };
enum fault { NONE, FAIL, FULL, SHORT, CUT, LIE };

/* The exit code of a machine without power. */
#define POWER_CUT 86
#define PAGE 4096
#define PAGES 65536
#define FILES 16
#define DESCRIPTORS 4096

/* The control file: 64-bit numbers, in the order of the machine. */
struct control {
    uint64_t calls[CLASSES];
    /* The test writes these, `at` last. */
    uint64_t class, fault, lasts;
    /* The number of the call that fails; 0 for none. */
    uint64_t at;
    /* How many calls have failed. */
    uint64_t failed;
    /* The next write finds no room: the one before it got the last of it. */
    uint64_t is_full;
};

/* A file, and what of it would survive. */
struct file {
    char name[256];
    int durable;
    /* The pages that were written since they were last made durable. It is
       shared with the process that comes next, as the page cache is. */
    unsigned char *dirty;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct control *control;
static const char *directory;
static size_t directory_length;
static const char *durable;
static struct file files[FILES];
/* What is watched but not kept: the -shm file. */
static struct file fleeting = {.durable = -1};
static struct file the_directory = {.durable = -1};
static struct file *opened[DESCRIPTORS];

static int (*real_open)(const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_unlink)(const char *);
static int (*real_rename)(const char *, const char *);

static void *symbol(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    if (real_open)
        return;
    real_close = symbol("close");
    real_read = symbol("read");
    real_pread = symbol("pread64");
    real_write = symbol("write");
    real_pwrite = symbol("pwrite64");
    real_fsync = symbol("fsync");
    real_ftruncate = symbol("ftruncate64");
    real_unlink = symbol("unlink");
    real_rename = symbol("rename");
    real_open = symbol("open64");
    const char *path = getenv("DISK_CONTROL");
    directory = getenv("DISK_DIRECTORY");
    durable = getenv("DISK_DURABLE");
    if (!path || !directory || !durable)
        return;
    directory_length = strlen(directory);
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || map == MAP_FAILED)
        abort();
    control = map;
}

/* The name of a watched path; the empty one is the directory. */
static const char *watched(const char *path) {
    if (!control || !path || strncmp(path, directory, directory_length) != 0)
        return NULL;
    const char *rest = path + directory_length;
    return *rest == 0 ? rest : *rest == '/' ? rest + 1 : NULL;
}

static struct file *watched_fd(int fd) {
    return control && 0 <= fd && fd < DESCRIPTORS ? opened[fd] : NULL;
}

/* Counts a call; what becomes of it. */
static enum fault fate(enum class class) {
    uint64_t number = ++control->calls[class];
    uint64_t at = __atomic_load_n(&control->at, __ATOMIC_ACQUIRE);
    if (at == 0 || class != control->class || (control->lasts ? number < at : number != at))
        return NONE;
    if (control->fault == CUT)
        _exit(POWER_CUT);
    return control->fault;
}

static int fail(enum fault fault) {
    control->failed++;
    errno = fault == FULL ? ENOSPC : EIO;
    return -1;
}

static int is_fleeting(const char *name) {
    size_t length = strlen(name);
    return 4 < length && strcmp(name + length - 4, "-shm") == 0;
}

/* Where something about a file is kept: what of it survives (""), which pages
   do not (".dirty"), and that its name does (".named"). */
static const char *kept(const char *name, const char *what) {
    static char path[2][4096];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s%s", durable, name, what);
    return path[turn];
}

static struct file *find(const char *name) {
    if (!*name)
        return &the_directory;
    if (is_fleeting(name))
        return &fleeting;
    struct file *unused = NULL;
    for (int i = 0; i < FILES; i++) {
        if (strcmp(files[i].name, name) == 0)
            return &files[i];
        if (!unused && !files[i].name[0])
            unused = &files[i];
    }
    int fd = real_open(kept(name, ""), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int dirty = real_open(kept(name, ".dirty"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (!unused || fd < 0 || dirty < 0 || real_ftruncate(dirty, PAGES) != 0)
        abort();
    unused->durable = fd;
    unused->dirty = mmap(NULL, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, dirty, 0);
    real_close(dirty);
    snprintf(unused->name, sizeof unused->name, "%s", name);
    return unused;
}

/* From now on a page is only in the cache. */
static void touch(struct file *file, off_t from, off_t to) {
    if (!file->dirty)
        return;
    for (off_t page = from / PAGE; page <= (to - 1) / PAGE && page < PAGES; page++)
        file->dirty[page] = 1;
}

static int open_watched(const char *name, const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&mutex);
    enum fault fault = fate(OPEN);
    int fd = fault ? fail(fault) : real_open(path, flags, mode);
    if (0 <= fd && fd < DESCRIPTORS)
        opened[fd] = find(name);
    pthread_mutex_unlock(&mutex);
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

int open64(const char *path, int flags, ...) {
    begin();
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    const char *name = watched(path);
    return name ? open_watched(name, path, flags, mode) : real_open(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return open64(path, flags, mode);
}

int close(int fd) {
    begin();
    if (watched_fd(fd))
        opened[fd] = NULL;
    return real_close(fd);
}

static ssize_t read_at(int fd, void *buffer, size_t length, off_t offset) {
    pthread_mutex_lock(&mutex);
    enum fault fault = fate(READ);
    ssize_t got = fault ? fail(fault) : offset < 0 ? real_read(fd, buffer, length) : real_pread(fd, buffer, length, offset);
    pthread_mutex_unlock(&mutex);
    return got;
}

ssize_t read(int fd, void *buffer, size_t length) {
    begin();
    return watched_fd(fd) ? read_at(fd, buffer, length, -1) : real_read(fd, buffer, length);
}

ssize_t pread64(int fd, void *buffer, size_t length, off_t offset) {
    begin();
    return watched_fd(fd) ? read_at(fd, buffer, length, offset) : real_pread(fd, buffer, length, offset);
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset) {
    return pread64(fd, buffer, length, offset);
}

static off_t size_of(int fd) {
    struct stat stat;
    return fstat(fd, &stat) == 0 ? stat.st_size : 0;
}

/* How much of a write goes through: all, a part, or nothing. */
static ssize_t allowed(int fd, size_t length, off_t offset) {
    enum fault fault = fate(WRITE);
    if (control->is_full) {
        control->is_full = 0;
        return fail(FULL);
    }
    if (fault == FULL && control->lasts && offset + (off_t)length <= size_of(fd))
        return length; /* What is there already needs no room. */
    if (fault == FULL && !control->lasts)
        control->is_full = 1;
    /* On a disk that stays full, only the first finds a little room. */
    int is_part = !control->lasts || control->failed == 0;
    if ((fault == FULL || fault == SHORT) && 1 < length && is_part) {
        control->failed++;
        return length / 2;
    }
    return fault ? fail(fault) : (ssize_t)length;
}

static ssize_t write_at(int fd, const void *buffer, size_t length, off_t offset) {
    pthread_mutex_lock(&mutex);
    off_t from = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
    ssize_t part = allowed(fd, length, from);
    if (0 < part) {
        part = offset < 0 ? real_write(fd, buffer, part) : real_pwrite(fd, buffer, part, offset);
        if (0 < part)
            touch(opened[fd], from, from + part);
    }
    pthread_mutex_unlock(&mutex);
    return part;
}

ssize_t write(int fd, const void *buffer, size_t length) {
    begin();
    return watched_fd(fd) ? write_at(fd, buffer, length, -1) : real_write(fd, buffer, length);
}

ssize_t pwrite64(int fd, const void *buffer, size_t length, off_t offset) {
    begin();
    return watched_fd(fd) ? write_at(fd, buffer, length, offset) : real_pwrite(fd, buffer, length, offset);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset) {
    return pwrite64(fd, buffer, length, offset);
}

/* Copies what was written since the last time to where it survives. */
static void make_durable(struct file *file, int fd) {
    static char page[PAGE];
    off_t size = size_of(fd);
    if (real_ftruncate(file->durable, size) != 0)
        abort();
    for (off_t at = 0; at < size && at / PAGE < PAGES; at += PAGE) {
        if (!file->dirty[at / PAGE])
            continue;
        ssize_t got = real_pread(fd, page, PAGE, at);
        if (got < 0 || real_pwrite(file->durable, page, got, at) != got)
            abort();
    }
}

/* From now on whatever is in the directory survives under its name. */
static void keep_names(void) {
    DIR *listed = opendir(directory);
    if (!listed)
        abort();
    for (struct dirent *entry; (entry = readdir(listed));) {
        if (entry->d_name[0] == '.' || is_fleeting(entry->d_name))
            continue;
        int fd = real_open(kept(entry->d_name, ".named"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            abort();
        real_close(fd);
    }
    closedir(listed);
}

int fsync(int fd) {
    begin();
    struct file *file = watched_fd(fd);
    if (!file)
        return real_fsync(fd);
    pthread_mutex_lock(&mutex);
    enum fault fault = fate(file == &the_directory ? NAMES : SYNC);
    if (fault == LIE) {
        pthread_mutex_unlock(&mutex);
        return 0;
    }
    if (!fault && file == &the_directory)
        keep_names();
    if (!fault && file->dirty)
        make_durable(file, fd);
    /* After a failure the kernel takes the pages for clean all the same: what is
       not written again never reaches the disk. */
    if (file->dirty)
        memset(file->dirty, 0, PAGES);
    int done = fault ? fail(fault) : 0;
    pthread_mutex_unlock(&mutex);
    return done;
}

int fdatasync(int fd) {
    return fsync(fd);
}

int ftruncate64(int fd, off_t length) {
    begin();
    struct file *file = watched_fd(fd);
    if (!file)
        return real_ftruncate(fd, length);
    pthread_mutex_lock(&mutex);
    enum fault fault = fate(TRUNCATE);
    int done = fault ? fail(fault) : real_ftruncate(fd, length);
    if (done == 0)
        touch(file, length, (off_t)PAGES * PAGE);
    pthread_mutex_unlock(&mutex);
    return done;
}

int ftruncate(int fd, off_t length) {
    return ftruncate64(fd, length);
}

int unlink(const char *path) {
    begin();
    const char *name = watched(path);
    if (!name)
        return real_unlink(path);
    pthread_mutex_lock(&mutex);
    enum fault fault = fate(UNLINK);
    int done = fault ? fail(fault) : real_unlink(path);
    struct file *file = done == 0 ? find(name) : &fleeting;
    if (file != &fleeting) {
        real_unlink(kept(name, ""));
        real_unlink(kept(name, ".dirty"));
        real_unlink(kept(name, ".named"));
        /* Descriptors that are still open write to nobody's file. */
        for (int fd = 0; fd < DESCRIPTORS; fd++)
            if (opened[fd] == file)
                opened[fd] = &fleeting;
        real_close(file->durable);
        munmap(file->dirty, PAGES);
        memset(file, 0, sizeof *file);
    }
    pthread_mutex_unlock(&mutex);
    return done;
}

/* Only to a name that nobody has. Until the directory is synced, neither survives. */
int rename(const char *from, const char *to) {
    begin();
    const char *old = watched(from), *new = watched(to);
    if (!old || !new)
        return real_rename(from, to);
    pthread_mutex_lock(&mutex);
    enum fault fault = fate(RENAME);
    int done = fault ? fail(fault) : real_rename(from, to);
    if (done == 0) {
        struct file *file = find(old);
        if (real_rename(kept(old, ""), kept(new, "")) != 0 ||
            real_rename(kept(old, ".dirty"), kept(new, ".dirty")) != 0)
            abort();
        real_unlink(kept(old, ".named"));
        snprintf(file->name, sizeof file->name, "%s", new);
    }
    pthread_mutex_unlock(&mutex);
    return done;
}
