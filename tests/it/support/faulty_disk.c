/*
 * Injects disk faults and power losses into a program. Preloaded before the C
 * library, it intercepts the calls that SQLite makes on the files of one directory.
 * Test and program share the control file as mapped memory, so that faults can be
 * injected and cleared while the program runs.
 *
 *   FAULTY_DISK_DIRECTORY          absolute path of the directory to intercept
 *   FAULTY_DISK_CONTROL_FILE       the control file
 *   FAULTY_DISK_DURABLE_DIRECTORY  receives the state that survives a power loss
 *
 * Content becomes durable when its file is synced, and a file name when its directory
 * is synced after that. POSIX promises no more, though many file systems do. A removal
 * is durable at once, because the removed files are of no use.
 *
 * Accesses to mapped memory (the -shm file) and locks are not intercepted: neither
 * survives a power loss.
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

/* Both enums have the order of `SyscallClass` and `DiskFault` in faulty_disk.rs. */
enum syscall_class {
    OPEN, READ, WRITE, SYNC, TRUNCATE, UNLINK, SYNC_DIRECTORY, RENAME, SYSCALL_CLASS_COUNT = 8
};
enum fault { NO_FAULT, IO_ERROR, NO_SPACE, SHORT_WRITE, POWER_LOSS, LOST_SYNC };

#define POWER_LOSS_EXIT_CODE 86
#define PAGE_BYTES 4096
#define MAX_PAGES 65536
#define MAX_FILES 16
#define MAX_DESCRIPTORS 4096

/* The control file: 64-bit integers in native byte order.
 *
 *   word    field              written by
 *   0..=7   call_counts        program    calls so far, by class
 *   8       class              test       class of the calls that fail
 *   9       fault              test
 *   10      is_persistent      test       1: every call from fault_call_number on fails
 *   11      fault_call_number  test       1-based number of the failing call, 0 for none;
 *                                         written last
 *   12      failed_calls       program    calls that have failed
 *   13      is_full            both       1: the next write fails, because a partial write
 *                                         used the remaining space
 */
struct control {
    uint64_t call_counts[SYSCALL_CLASS_COUNT];
    uint64_t class;
    uint64_t fault;
    uint64_t is_persistent;
    uint64_t fault_call_number;
    uint64_t failed_calls;
    uint64_t is_full;
};

struct file {
    char name[256];
    /* Descriptor of the durable copy, or -1. */
    int durable_fd;
    /* One byte per page: 1 if written since the last sync. Mapped from a file, so that
       it outlives the process as the page cache does. */
    unsigned char *dirty_pages;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct control *control;
static const char *directory;
static size_t directory_length;
static const char *durable_directory;
static struct file files[MAX_FILES];
/* Stands for files that are intercepted but never durable: -shm and removed files. */
static struct file volatile_file = {.durable_fd = -1};
static struct file directory_file = {.durable_fd = -1};
static struct file *open_files[MAX_DESCRIPTORS];

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

static void *real_function(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        abort();
    return found;
}

__attribute__((constructor)) static void initialize(void) {
    if (real_open)
        return;
    real_close = real_function("close");
    real_read = real_function("read");
    real_pread = real_function("pread64");
    real_write = real_function("write");
    real_pwrite = real_function("pwrite64");
    real_fsync = real_function("fsync");
    real_ftruncate = real_function("ftruncate64");
    real_unlink = real_function("unlink");
    real_rename = real_function("rename");
    real_open = real_function("open64");
    const char *path = getenv("FAULTY_DISK_CONTROL_FILE");
    directory = getenv("FAULTY_DISK_DIRECTORY");
    durable_directory = getenv("FAULTY_DISK_DURABLE_DIRECTORY");
    if (!path || !directory || !durable_directory)
        return;
    directory_length = strlen(directory);
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || map == MAP_FAILED)
        abort();
    control = map;
}

/* Returns the file name of an intercepted path, "" for the directory, else NULL. */
static const char *intercepted_name(const char *path) {
    if (!control || !path || strncmp(path, directory, directory_length) != 0)
        return NULL;
    const char *rest = path + directory_length;
    return *rest == 0 ? rest : *rest == '/' ? rest + 1 : NULL;
}

static struct file *intercepted_file(int fd) {
    return control && fd >= 0 && fd < MAX_DESCRIPTORS ? open_files[fd] : NULL;
}

/* Counts a call and returns its fault. Does not return on a power loss. */
static enum fault next_fault(enum syscall_class class) {
    uint64_t number = ++control->call_counts[class];
    uint64_t target = __atomic_load_n(&control->fault_call_number, __ATOMIC_ACQUIRE);
    int is_hit = control->is_persistent ? number >= target : number == target;
    if (target == 0 || class != control->class || !is_hit)
        return NO_FAULT;
    if (control->fault == POWER_LOSS)
        _exit(POWER_LOSS_EXIT_CODE);
    return control->fault;
}

static int fail(enum fault fault) {
    control->failed_calls++;
    errno = fault == NO_SPACE ? ENOSPC : EIO;
    return -1;
}

static int is_volatile(const char *name) {
    size_t length = strlen(name);
    return length > 4 && strcmp(name + length - 4, "-shm") == 0;
}

/* Returns a path in the durable directory: the durable content (suffix ""), the map of
   dirty pages (".dirty"), or the marker of a durable name (".named"). Two results are
   valid at a time; the caller holds the mutex. */
static const char *durable_path(const char *name, const char *suffix) {
    static char paths[2][4096];
    static int index;
    index = !index;
    snprintf(paths[index], sizeof paths[index], "%s/%s%s", durable_directory, name, suffix);
    return paths[index];
}

static struct file *find_or_add(const char *name) {
    if (!*name)
        return &directory_file;
    if (is_volatile(name))
        return &volatile_file;
    struct file *unused = NULL;
    for (int i = 0; i < MAX_FILES; i++) {
        if (strcmp(files[i].name, name) == 0)
            return &files[i];
        if (!unused && !files[i].name[0])
            unused = &files[i];
    }
    int fd = real_open(durable_path(name, ""), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int dirty = real_open(durable_path(name, ".dirty"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (!unused || fd < 0 || dirty < 0 || real_ftruncate(dirty, MAX_PAGES) != 0)
        abort();
    unused->durable_fd = fd;
    unused->dirty_pages = mmap(NULL, MAX_PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, dirty, 0);
    real_close(dirty);
    snprintf(unused->name, sizeof unused->name, "%s", name);
    return unused;
}

/* Marks the pages of a byte range as not durable. */
static void mark_dirty(struct file *file, off_t from, off_t to) {
    if (!file->dirty_pages)
        return;
    for (off_t page = from / PAGE_BYTES; page <= (to - 1) / PAGE_BYTES && page < MAX_PAGES; page++)
        file->dirty_pages[page] = 1;
}

static int faulty_open(const char *name, const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&mutex);
    enum fault fault = next_fault(OPEN);
    int fd = fault ? fail(fault) : real_open(path, flags, mode);
    if (fd >= 0 && fd < MAX_DESCRIPTORS)
        open_files[fd] = find_or_add(name);
    pthread_mutex_unlock(&mutex);
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

int open64(const char *path, int flags, ...) {
    initialize();
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    const char *name = intercepted_name(path);
    return name ? faulty_open(name, path, flags, mode) : real_open(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return open64(path, flags, mode);
}

int close(int fd) {
    initialize();
    if (intercepted_file(fd))
        open_files[fd] = NULL;
    return real_close(fd);
}

/* Reads at `offset`, or at the file position if it is negative. */
static ssize_t faulty_read(int fd, void *buffer, size_t length, off_t offset) {
    pthread_mutex_lock(&mutex);
    enum fault fault = next_fault(READ);
    ssize_t count = fault ? fail(fault) : offset < 0 ? real_read(fd, buffer, length) : real_pread(fd, buffer, length, offset);
    pthread_mutex_unlock(&mutex);
    return count;
}

ssize_t read(int fd, void *buffer, size_t length) {
    initialize();
    return intercepted_file(fd) ? faulty_read(fd, buffer, length, -1) : real_read(fd, buffer, length);
}

ssize_t pread64(int fd, void *buffer, size_t length, off_t offset) {
    initialize();
    return intercepted_file(fd) ? faulty_read(fd, buffer, length, offset) : real_pread(fd, buffer, length, offset);
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset) {
    return pread64(fd, buffer, length, offset);
}

static off_t size_of(int fd) {
    struct stat stat;
    return fstat(fd, &stat) == 0 ? stat.st_size : 0;
}

/* Returns how many bytes a write may store: all, a part, or -1 with errno. */
static ssize_t writable_bytes(int fd, size_t length, off_t offset) {
    enum fault fault = next_fault(WRITE);
    if (control->is_full) {
        control->is_full = 0;
        return fail(NO_SPACE);
    }
    if (fault == NO_SPACE && control->is_persistent && offset + (off_t)length <= size_of(fd))
        return length; /* Overwriting needs no space. */
    if (fault == NO_SPACE && !control->is_persistent)
        control->is_full = 1;
    /* On a disk that stays full, only the first write finds a little space. */
    int is_partial = !control->is_persistent || control->failed_calls == 0;
    if ((fault == NO_SPACE || fault == SHORT_WRITE) && length > 1 && is_partial) {
        control->failed_calls++;
        return length / 2;
    }
    return fault ? fail(fault) : (ssize_t)length;
}

/* Writes at `offset`, or at the file position if it is negative. */
static ssize_t faulty_write(int fd, const void *buffer, size_t length, off_t offset) {
    pthread_mutex_lock(&mutex);
    off_t from = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
    ssize_t written = writable_bytes(fd, length, from);
    if (written > 0) {
        written = offset < 0 ? real_write(fd, buffer, written) : real_pwrite(fd, buffer, written, offset);
        if (written > 0)
            mark_dirty(open_files[fd], from, from + written);
    }
    pthread_mutex_unlock(&mutex);
    return written;
}

ssize_t write(int fd, const void *buffer, size_t length) {
    initialize();
    return intercepted_file(fd) ? faulty_write(fd, buffer, length, -1) : real_write(fd, buffer, length);
}

ssize_t pwrite64(int fd, const void *buffer, size_t length, off_t offset) {
    initialize();
    return intercepted_file(fd) ? faulty_write(fd, buffer, length, offset) : real_pwrite(fd, buffer, length, offset);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset) {
    return pwrite64(fd, buffer, length, offset);
}

/* Copies the dirty pages to the durable copy. */
static void make_content_durable(struct file *file, int fd) {
    static char page[PAGE_BYTES];
    off_t size = size_of(fd);
    if (real_ftruncate(file->durable_fd, size) != 0)
        abort();
    for (off_t at = 0; at < size && at / PAGE_BYTES < MAX_PAGES; at += PAGE_BYTES) {
        if (!file->dirty_pages[at / PAGE_BYTES])
            continue;
        ssize_t count = real_pread(fd, page, PAGE_BYTES, at);
        if (count < 0 || real_pwrite(file->durable_fd, page, count, at) != count)
            abort();
    }
}

/* Makes the names of all files in the directory durable. */
static void make_names_durable(void) {
    DIR *entries = opendir(directory);
    if (!entries)
        abort();
    for (struct dirent *entry; (entry = readdir(entries));) {
        if (entry->d_name[0] == '.' || is_volatile(entry->d_name))
            continue;
        int fd = real_open(durable_path(entry->d_name, ".named"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            abort();
        real_close(fd);
    }
    closedir(entries);
}

int fsync(int fd) {
    initialize();
    struct file *file = intercepted_file(fd);
    if (!file)
        return real_fsync(fd);
    pthread_mutex_lock(&mutex);
    enum fault fault = next_fault(file == &directory_file ? SYNC_DIRECTORY : SYNC);
    if (fault == LOST_SYNC) {
        pthread_mutex_unlock(&mutex);
        return 0;
    }
    if (!fault && file == &directory_file)
        make_names_durable();
    if (!fault && file->dirty_pages)
        make_content_durable(file, fd);
    /* The kernel marks pages clean even if their sync failed: pages that are not
       written again never reach the disk. */
    if (file->dirty_pages)
        memset(file->dirty_pages, 0, MAX_PAGES);
    int result = fault ? fail(fault) : 0;
    pthread_mutex_unlock(&mutex);
    return result;
}

int fdatasync(int fd) {
    return fsync(fd);
}

int ftruncate64(int fd, off_t length) {
    initialize();
    struct file *file = intercepted_file(fd);
    if (!file)
        return real_ftruncate(fd, length);
    pthread_mutex_lock(&mutex);
    enum fault fault = next_fault(TRUNCATE);
    int result = fault ? fail(fault) : real_ftruncate(fd, length);
    if (result == 0)
        mark_dirty(file, length, (off_t)MAX_PAGES * PAGE_BYTES);
    pthread_mutex_unlock(&mutex);
    return result;
}

int ftruncate(int fd, off_t length) {
    return ftruncate64(fd, length);
}

int unlink(const char *path) {
    initialize();
    const char *name = intercepted_name(path);
    if (!name)
        return real_unlink(path);
    pthread_mutex_lock(&mutex);
    enum fault fault = next_fault(UNLINK);
    int result = fault ? fail(fault) : real_unlink(path);
    struct file *file = result == 0 ? find_or_add(name) : &volatile_file;
    if (file != &volatile_file) {
        real_unlink(durable_path(name, ""));
        real_unlink(durable_path(name, ".dirty"));
        real_unlink(durable_path(name, ".named"));
        /* Open descriptors of a removed file are never durable. */
        for (int fd = 0; fd < MAX_DESCRIPTORS; fd++)
            if (open_files[fd] == file)
                open_files[fd] = &volatile_file;
        real_close(file->durable_fd);
        munmap(file->dirty_pages, MAX_PAGES);
        memset(file, 0, sizeof *file);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}

/* Requires that `to` does not exist. Neither name is durable until the directory is synced. */
int rename(const char *from, const char *to) {
    initialize();
    const char *old_name = intercepted_name(from), *new_name = intercepted_name(to);
    if (!old_name || !new_name)
        return real_rename(from, to);
    pthread_mutex_lock(&mutex);
    enum fault fault = next_fault(RENAME);
    int result = fault ? fail(fault) : real_rename(from, to);
    if (result == 0) {
        struct file *file = find_or_add(old_name);
        if (real_rename(durable_path(old_name, ""), durable_path(new_name, "")) != 0 ||
            real_rename(durable_path(old_name, ".dirty"), durable_path(new_name, ".dirty")) != 0)
            abort();
        real_unlink(durable_path(old_name, ".named"));
        snprintf(file->name, sizeof file->name, "%s", new_name);
    }
    pthread_mutex_unlock(&mutex);
    return result;
}
