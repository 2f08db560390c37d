/* The kernel experiment by itself: a line of JSON for each writer (benchmarks/kernel_ab reads them).
 *
 *   kernel_ab [receivers=1] [payload=4096] [area_mib=64] [counted=2000] [warm_up=0.3] [seconds=1] [writers=none,mprotect,mmap]
 *
 * As the first process of a virtual machine, where the kernel passes it these words of its command line, it also sets up what the experiment
 * needs, and switches the machine off in the end. */
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

#include "lab/kernel.h"

static const char *const writers[] = {[ZC_KERNEL_NO_WRITER] = "none", [ZC_KERNEL_MPROTECT] = "mprotect", [ZC_KERNEL_MMAP] = "mmap"};

/* In a machine of our own there is nothing yet: no file systems, and loopback is down. */
static void set_up_machine(void) {
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &loopback) < 0)
        printf("loopback: %s\n", strerror(errno));
    close(fd);
}

/* Takes one name=value. Returns whether it is one of ours. */
static int take(const char *word, struct zc_kernel_options *options, char *chosen, size_t size) {
    const char *value = strchr(word, '=');
    if (value++ == NULL)
        return 0;
    size_t name = (size_t)(value - word);
    if (strncmp(word, "receivers=", name) == 0)
        options->receivers = (uint32_t)strtoul(value, NULL, 10);
    else if (strncmp(word, "payload=", name) == 0)
        options->payload = (uint32_t)strtoul(value, NULL, 10);
    else if (strncmp(word, "area_mib=", name) == 0)
        options->area_bytes = strtoull(value, NULL, 10) << 20;
    else if (strncmp(word, "counted=", name) == 0)
        options->counted = (uint32_t)strtoul(value, NULL, 10);
    else if (strncmp(word, "warm_up=", name) == 0)
        options->warm_up_seconds = strtod(value, NULL);
    else if (strncmp(word, "seconds=", name) == 0)
        options->seconds = strtod(value, NULL);
    else if (strncmp(word, "writers=", name) == 0)
        snprintf(chosen, size, "%s", value);
    else
        return 0;
    return 1;
}

static void print_latency(const char *name, const struct zc_latency *latency) {
    printf("\"%s\": {\"samples\": %llu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, \"max_us\": %.3f, \"mean_us\": %.3f}, ",
           name, (unsigned long long)latency->samples, latency->p50_us, latency->p99_us, latency->p999_us, latency->max_us,
           latency->mean_us);
}

static void print_result(const char *release, const char *writer, int ran, const struct zc_kernel_result *result) {
    printf("{\"kernel\": \"%s\", \"writer\": \"%s\", \"failed\": \"%s\", \"elapsed_seconds\": %.6f, \"receiver_cpu_seconds\": %.6f, ",
           release, writer, ran < 0 ? strerror(-ran) : "", result->elapsed_seconds, result->receiver_cpu_seconds);
    printf("\"payloads\": %llu, \"receives\": %llu, \"bytes_mapped\": %llu, \"bytes_copied\": %llu, \"wrong\": %llu, ",
           (unsigned long long)result->payloads, (unsigned long long)result->receives, (unsigned long long)result->bytes_mapped,
           (unsigned long long)result->bytes_copied, (unsigned long long)result->wrong);
    print_latency("receive", &result->receive);
    print_latency("change", &result->change);
    printf("\"changes\": %llu, \"counted_receives\": %llu, \"acquisitions\": %llu, \"waited_us\": %.3f, \"longest_wait_us\": %.3f, "
           "\"not_counted\": \"%s\"}\n",
           (unsigned long long)result->changes, (unsigned long long)result->counted_receives, (unsigned long long)result->acquisitions,
           result->waited_us, result->longest_wait_us, result->not_counted);
    fflush(stdout);
}

static int chosen_has(const char *chosen, const char *name) {
    const char *at = strstr(chosen, name);
    return at != NULL && (at == chosen || at[-1] == ',') && (at[strlen(name)] == '\0' || at[strlen(name)] == ',');
}

int main(int count, char **words) {
    struct zc_kernel_options options = {
        .receivers = 1, .payload = 4096, .area_bytes = 64u << 20, .counted = 2000, .warm_up_seconds = 0.3, .seconds = 1};
    char chosen[64] = "none,mprotect,mmap";
    struct utsname machine;
    int in_machine = getpid() == 1, status = 0;
    if (in_machine)
        set_up_machine();
    uname(&machine);
    for (int i = 1; i < count; i++) {
        if (!take(words[i], &options, chosen, sizeof chosen) && !in_machine) { /* the kernel passes on words of its own */
            fprintf(stderr, "kernel_ab: what is %s?\n", words[i]);
            return 2;
        }
    }
    for (uint32_t writer = ZC_KERNEL_NO_WRITER; writer <= ZC_KERNEL_MMAP; writer++) {
        struct zc_kernel_result result;
        if (!chosen_has(chosen, writers[writer]))
            continue;
        options.writer = writer;
        int ran = zc_kernel_run(&options, &result);
        print_result(machine.release, writers[writer], ran, &result);
        status |= ran < 0;
    }
    if (in_machine) {
        tcdrain(STDOUT_FILENO); /* a serial line is slower than switching off */
        reboot(RB_POWER_OFF);
    }
    return status;
}
