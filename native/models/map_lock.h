/* The map lock as the models of region locks use it: one step in, one step out, and a waiting writer keeps new readers out, so a reader that
 * waits here while somebody waits for it deadlocks. How the lock itself works is what global.pml is about.
 *
 * Where a writer waits, here and in region locks, others go on; a thread that is never let in is an invalid end state. */
byte map_readers[MAPS];
bool map_writer[MAPS], map_wanted[MAPS];

inline map_read_lock(m) {
    atomic { !map_writer[m] && !map_wanted[m] -> map_readers[m]++ }
}

inline map_read_unlock(m) {
    map_readers[m]--
}

inline map_write_lock(m) {
    atomic { !map_writer[m] && !map_wanted[m] -> map_wanted[m] = true };
    d_step { map_readers[m] == 0 -> map_wanted[m] = false; map_writer[m] = true }
}

inline map_write_unlock(m) {
    map_writer[m] = false
}
