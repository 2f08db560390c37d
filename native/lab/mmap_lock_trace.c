#include "lab/mmap_lock_trace.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRACEFS "/sys/kernel/tracing"
#define INSTANCE "zcrpc-" /* and the process id */
#define BUFFER_KIB "2048" /* for each core; an acquisition takes about 80 bytes */

static const char *const events[] = {"mmap_lock_start_locking", "mmap_lock_acquire_returned"};

static int refuse(char *why, size_t size, const char *what, int error) {
    snprintf(why, size, "%s: %s", what, strerror(error));
    return -1;
}

/* Writes a control file of the instance. 0, or a negative errno. */
static int set(const struct zc_mmap_lock_trace *trace, const char *file, const char *value) {
    char path[2 * ZC_TRACE_PATH];
    snprintf(path, sizeof path, "%s/%s", trace->directory, file);
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int failed = write(fd, value, strlen(value)) < 0 ? -errno : 0;
    close(fd);
    return failed;
}

/* The folder of the tracing file system, which is mounted if it is not and we may. */
static const char *find_tracefs(char *why, size_t size) {
    static const char *const places[] = {TRACEFS, "/sys/kernel/debug/tracing"};
    for (int mounted = 0; mounted < 2; mounted++) {
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            char path[ZC_TRACE_PATH];
            snprintf(path, sizeof path, "%s/instances", places[i]);
            if (access(path, F_OK) == 0)
                return places[i];
            if (errno == EACCES) {
                refuse(why, size, places[i], EACCES);
                return NULL;
            }
        }
        if (!mounted && mount("tracefs", TRACEFS, "tracefs", 0, NULL) < 0)
            break;
    }
    refuse(why, size, "tracefs is not mounted, and cannot be", errno);
    return NULL;
}

/* Removes what killed processes left behind. */
static void sweep(const char *instances) {
    DIR *directory = opendir(instances);
    struct dirent *entry;
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (strncmp(entry->d_name, INSTANCE, strlen(INSTANCE)) != 0)
            continue;
        pid_t owner = (pid_t)strtol(entry->d_name + strlen(INSTANCE), NULL, 10);
        if (owner > 0 && kill(owner, 0) < 0 && errno == ESRCH)
            unlinkat(dirfd(directory), entry->d_name, AT_REMOVEDIR);
    }
    if (directory != NULL)
        closedir(directory);
}

int zc_mmap_lock_trace_open(struct zc_mmap_lock_trace *trace, char *why, size_t size) {
    *trace = (struct zc_mmap_lock_trace){0};
    char path[ZC_TRACE_PATH];
    const char *tracefs = find_tracefs(why, size);
    if (tracefs == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/events/mmap_lock", tracefs);
    if (access(path, F_OK) < 0)
        return refuse(why, size, "this kernel has no mmap_lock tracepoints", errno);
    snprintf(path, sizeof path, "%s/instances", tracefs);
    sweep(path);
    snprintf(trace->directory, sizeof trace->directory, "%s/instances/" INSTANCE "%d", tracefs, (int)getpid());
    if (mkdir(trace->directory, 0700) < 0) {
        int error = errno;
        trace->directory[0] = '\0';
        return refuse(why, size, "a tracing instance cannot be made", error);
    }
    /* What is too much is lost and counted, the start is kept; one clock for all cores, since who waits may wake up on another. */
    int failed = set(trace, "options/overwrite", "0");
    failed = failed ? failed : set(trace, "trace_clock", "mono");
    failed = failed ? failed : set(trace, "buffer_size_kb", BUFFER_KIB);
    if (failed == 0)
        return 0;
    zc_mmap_lock_trace_close(trace);
    return refuse(why, size, "the tracing instance cannot be set up", -failed);
}

/* Writes a control file of each event. */
static int set_events(const struct zc_mmap_lock_trace *trace, const char *file, const char *value) {
    int failed = 0;
    for (size_t i = 0; i < sizeof events / sizeof *events && failed == 0; i++) {
        char path[ZC_TRACE_PATH];
        snprintf(path, sizeof path, "events/mmap_lock/%s/%s", events[i], file);
        failed = set(trace, path, value);
    }
    return failed;
}

/* The threads are chosen by a filter of the events. set_event_pid would do it, too, but it hooks into every switch and wake-up of the whole
 * machine to keep track of them. */
int zc_mmap_lock_trace_start(struct zc_mmap_lock_trace *trace, const pid_t *threads, uint32_t count, char *why, size_t size) {
    char filter[ZC_TRACE_THREADS * 28] = "";
    trace->count = count < ZC_TRACE_THREADS ? count : ZC_TRACE_THREADS;
    memcpy(trace->threads, threads, trace->count * sizeof *threads);
    for (uint32_t i = 0; i < trace->count; i++)
        snprintf(filter + strlen(filter), sizeof filter - strlen(filter), "%scommon_pid==%d", i ? "||" : "", (int)threads[i]);
    int failed = set_events(trace, "filter", filter);
    failed = failed ? failed : set(trace, "trace", "");
    failed = failed ? failed : set_events(trace, "enable", "1");
    return failed ? refuse(why, size, "the mmap_lock tracepoints cannot be switched on", -failed) : 0;
}

struct reading {
    const struct zc_mmap_lock_trace *trace;
    struct zc_mmap_lock_counts *counts;
    double started[ZC_TRACE_THREADS]; /* µs, when each thread last began to wait */
};

/* Takes a line of the trace: "  name-123  [001] d..1.  12.345678: mmap_lock_acquire_returned: mm=… write=false success=true". */
static void take_line(struct reading *reading, const char *line) {
    const char *core = strstr(line, " ["), *event = strstr(line, ": mmap_lock_");
    if (core == NULL || event == NULL || core > event)
        return;
    const char *id = core, *clock = event;
    while (id > line && id[-1] != '-')
        id--;
    while (clock > line && clock[-1] != ' ')
        clock--;
    pid_t thread = (pid_t)strtol(id, NULL, 10);
    double now = strtod(clock, NULL) * 1e6;
    uint32_t i = 0;
    while (i < reading->trace->count && reading->trace->threads[i] != thread)
        i++;
    if (i == reading->trace->count)
        return;
    bool write = strstr(event, "write=true") != NULL;
    if (strncmp(event + 2, events[0], strlen(events[0])) == 0) {
        reading->started[i] = now;
    } else if (strstr(event, "success=true") != NULL && write) {
        reading->counts->writes++;
    } else if (strstr(event, "success=true") != NULL) {
        double waited = reading->started[i] > 0 ? now - reading->started[i] : 0;
        reading->counts->reads++;
        reading->counts->waited_us += waited;
        if (waited > reading->counts->longest_us)
            reading->counts->longest_us = waited;
    }
}

static int read_trace(const struct zc_mmap_lock_trace *trace, struct zc_mmap_lock_counts *counts) {
    char path[2 * ZC_TRACE_PATH], line[512];
    struct reading reading = {.trace = trace, .counts = counts};
    snprintf(path, sizeof path, "%s/trace", trace->directory);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return -errno;
    while (fgets(line, sizeof line, file) != NULL)
        take_line(&reading, line);
    fclose(file);
    return 0;
}

/* Events that the buffers of all cores lost. */
static uint64_t lost_events(const struct zc_mmap_lock_trace *trace) {
    uint64_t lost = 0;
    long cores = sysconf(_SC_NPROCESSORS_CONF);
    for (long core = 0; core < cores; core++) {
        char path[2 * ZC_TRACE_PATH], line[128];
        snprintf(path, sizeof path, "%s/per_cpu/cpu%ld/stats", trace->directory, core);
        FILE *file = fopen(path, "re");
        unsigned long long number;
        while (file != NULL && fgets(line, sizeof line, file) != NULL)
            if (sscanf(line, "dropped events: %llu", &number) == 1 || sscanf(line, "overrun: %llu", &number) == 1)
                lost += number;
        if (file != NULL)
            fclose(file);
    }
    return lost;
}

int zc_mmap_lock_trace_stop(struct zc_mmap_lock_trace *trace, struct zc_mmap_lock_counts *counts, char *why, size_t size) {
    *counts = (struct zc_mmap_lock_counts){0};
    int failed = set_events(trace, "enable", "0");
    failed = failed ? failed : read_trace(trace, counts);
    if (failed)
        return refuse(why, size, "the trace cannot be read", -failed);
    counts->lost = lost_events(trace);
    return 0;
}

void zc_mmap_lock_trace_close(struct zc_mmap_lock_trace *trace) {
    if (trace->directory[0] != '\0')
        rmdir(trace->directory);
    trace->directory[0] = '\0';
}
