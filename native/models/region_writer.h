/* The writers of the models of region locks: sections as native/region/writes.c has them, any of them at any time, in any map. */
active [WRITERS] proctype writer() {
    byte w = _pid - READERS, m, a, r, seen;
    bool last, sweep;
#ifdef SWAP
    byte other;
#endif
    do
    :: choose();
        write_lock();
        choose_address();
        r = found[m * ADDRESSES + a];
        if
        :: r != NOWHERE -> /* zc_write_recycle */
            region_write_lock(r);
            assert(locked[r] && inside[r] == 0);
#ifdef CONTENT
            change_content(r);
#endif
            write_unlock()
        :: r != NOWHERE -> /* zc_write_detach */
            region_write_lock(r);
            detach(r);
            assert(inside[r] == 0);
            found[m * ADDRESSES + a] = NOWHERE;
            of_map[r] = NOWHERE;
            place[r] = NOWHERE;
            locked[r] = false; /* a free struct from here on */
            write_unlock();
            taken[r] = false
        :: r == NOWHERE -> /* zc_write_attach */
            atomic {
                if
                :: !taken[0] -> r = 0
#if STRUCTS > 1
                :: !taken[1] -> r = 1
#endif
                :: else -> goto no_struct
                fi;
                taken[r] = true
            };
            d_step {
                assert(inside[r] == 0 && !locked[r]);
                of_map[r] = m;
                c_code { reach("moved"); }
            };
            place[r] = a;
            found[m * ADDRESSES + a] = r;
            attach(r);
no_struct:  write_unlock()
#ifdef SWAP /* a change that spans two regions */
        :: r != NOWHERE && found[m * ADDRESSES + 1 - a] != NOWHERE ->
            other = found[m * ADDRESSES + 1 - a];
            region_write_lock(r);
#ifndef FAULT_M3
            region_write_lock(other);
#endif
            place[r] = 1 - a;
            place[other] = a;
            found[m * ADDRESSES + a] = other;
            d_step {
                found[m * ADDRESSES + 1 - a] = r;
                assert(inside[r] == 0 && inside[other] == 0);
                c_code { reach("swap"); };
                other = 0
            };
            write_unlock()
#endif
        fi;
        d_step { r = NOWHERE; m = 0; a = 0; seen = 0 }
    :: break
    od
}
