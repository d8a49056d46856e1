/* Turns the wall clock of a process by as many seconds as the file says that ANNEAL_CLOCK names. Preloaded, as libfaketime would
 * be; that one asks for memory when it is first asked for the time, and jemalloc asks for the time when it is first asked
 * for memory. This takes no memory, and no lock. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long seconds(void) {
  const char *path = getenv("ANNEAL_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return 0;
  char text[32];
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return 0;
  text[length] = 0;
  return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  long failed = syscall(SYS_clock_gettime, clock, time);
  if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return (int)failed;
  int before = errno;
  time->tv_sec += seconds();
  errno = before;
  return 0;
}
