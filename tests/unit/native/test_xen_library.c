/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Finding Xen's libraries, and what is said when one is missing or of another Xen. Arguments: stand-ins for
 * the libraries: right, of another Xen, with other events, without one function. */
#include "../../../native/xen/library.h"

#include "check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RIGHT = 1, OTHER_VERSION, OTHER_EVENTS, INCOMPLETE, ARGUMENTS };

static const char *const names[] = {"libxenctrl.so.4.17", "libxenforeignmemory.so.1", "libxenevtchn.so.1"};
static char directory[] = "/tmp/test-xen-library-XXXXXX";
static char error[400];

static void path_of(const char *name, char *path)
{
    snprintf(path, 200, "%s/%s", directory, name);
}

static void remove_all(void)
{
    char path[200];
    for (size_t i = 0; i < 3; i++) {
        path_of(names[i], path);
        unlink(path);
    }
}

static void put_all(const char *stand_in)
{
    char path[200], target[4096];
    remove_all();
    CHECK(realpath(stand_in, target));
    for (size_t i = 0; i < 3; i++) {
        path_of(names[i], path);
        CHECK(symlink(target, path) == 0);
    }
}

static int try_open(const char *stand_in)
{
    struct xen_library library;
    put_all(stand_in);
    error[0] = 0;
    int status = xen_library_open(&library, directory, error, sizeof error);
    if (!status) {
        status = xen_library_check(&library, NULL, error, sizeof error);
        xen_library_close(&library);
    }
    return status;
}

/* Any of the three. */
static void test_missing(const char *stand_in)
{
    struct xen_library library;
    char path[200];
    for (size_t i = 0; i < 3; i++) {
        put_all(stand_in);
        path_of(names[i], path);
        unlink(path);
        CHECK(xen_library_open(&library, directory, error, sizeof error) == -ENOENT);
        CHECK(strstr(error, names[i]) && strstr(error, "install"));
        for (size_t loaded = 0; loaded < XEN_LIBRARIES; loaded++)
            CHECK(!library.loaded[loaded]);
    }
}

int main(int count, char **arguments)
{
    CHECK(count == ARGUMENTS);
    CHECK(mkdtemp(directory));
    CHECK_EQ(try_open(arguments[RIGHT]), 0);
    CHECK(!error[0]);
    CHECK_EQ(try_open(arguments[OTHER_VERSION]), -EOPNOTSUPP);
    CHECK(strstr(error, "Xen 4.18 runs here; supported is 4.17"));
    CHECK_EQ(try_open(arguments[OTHER_EVENTS]), -EOPNOTSUPP);
    CHECK(strstr(error, "interface version 8"));
    CHECK_EQ(try_open(arguments[INCOMPLETE]), -ENOSYS);
    CHECK(strstr(error, "lacks xc_mem_paging_load"));
    test_missing(arguments[RIGHT]);
    remove_all();
    rmdir(directory);
    return 0;
}
