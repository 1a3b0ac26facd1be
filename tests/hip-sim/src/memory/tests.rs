use super::*;

#[test]
fn an_allocation_is_accessible_to_its_last_byte_and_no_further() {
    let memory = Memory::new();
    let start = memory.allocate(100);
    let pointer = memory.resolve(start + 96, 4).expect("inside");
    // SAFETY: resolved.
    unsafe { pointer.cast::<u32>().write(7) };
    assert_eq!(pointer as u64, start + 96);
    let error = Err(AccessError::OutOfBounds { allocation: start, size: 100 });
    assert_eq!(memory.resolve(start + 97, 4), error);
    assert_eq!(memory.resolve(start + 100, 1), error);
    assert_eq!(memory.resolve(start, 101), error);
    assert_eq!(memory.resolve(start, usize::MAX), error);
    assert_eq!(memory.resolve(start + GRANULE, 1), error, "the guard names what it guards");
    assert_eq!(memory.resolve(start + 2 * GRANULE, 1), Err(AccessError::Unmapped));
    assert_eq!(memory.resolve(u64::MAX, 1), Err(AccessError::Unmapped));
    assert_eq!(memory.resolve(0, 4), Err(AccessError::Null));
    assert_eq!(memory.resolve(64, 4), Err(AccessError::Null));
}

#[test]
fn a_freed_allocation_is_named_and_not_soon_reused() {
    let memory = Memory::new();
    let first = memory.allocate(GRANULE as usize);
    assert_eq!(memory.used(), GRANULE as usize);
    assert_eq!(memory.free(first + 8), Err(AccessError::OutOfBounds { allocation: first, size: 1 << 16 }));
    memory.free(first).expect("live");
    let freed = AccessError::Freed { allocation: first, size: 1 << 16 };
    assert_ne!(memory.allocate(GRANULE as usize), first);
    assert_eq!(memory.resolve(first + 4, 4), Err(freed));
    assert_eq!(memory.free(first), Err(freed));
    assert_eq!(memory.free(0), Err(AccessError::Null));
    assert_eq!(memory.free(12 * GRANULE), Err(AccessError::Unmapped));
    assert_eq!(memory.used(), GRANULE as usize);
}

#[test]
fn the_memory_of_the_whole_device_fits_and_its_addresses_come_round() {
    let memory = Memory::new();
    let kept = memory.allocate(1);
    for _ in 0..10 {
        let start = memory.allocate(192 << 30);
        assert_ne!(start, 0);
        assert!(memory.resolve(start + (192 << 30) - 1, 1).is_ok());
        memory.free(start).expect("live");
    }
    assert!(memory.resolve(kept, 1).is_ok());
    assert_eq!(memory.allocate(2 * SPACE as usize), 0);
    assert_ne!(memory.allocate(64), 0, "a refused allocation leaves room");
}

#[test]
fn an_address_used_again_is_zeroed_and_live() {
    let memory = Memory::new();
    let first = memory.allocate(64);
    // SAFETY: allocated.
    unsafe { memory.resolve(first, 64).expect("live").write_bytes(0xff, 64) };
    memory.free(first).expect("live");
    memory.ranges.lock().expect("not poisoned").cursor = 0;
    assert_eq!(memory.allocate(64), first);
    // SAFETY: allocated.
    assert_eq!(unsafe { *memory.resolve(first + 63, 1).expect("live") }, 0);
}

#[test]
fn registered_host_memory_is_accessible_at_its_own_address() {
    let memory = Memory::new();
    let mut host = [0_u8; 16];
    let address = host.as_mut_ptr() as u64;
    assert_eq!(memory.resolve(address, 16), Err(AccessError::Unmapped));
    memory.register(host.as_mut_ptr(), 16);
    assert_eq!(memory.resolve(address + 8, 8), Ok(host.as_mut_ptr().wrapping_add(8)));
    assert_eq!(
        memory.resolve(address + 8, 9),
        Err(AccessError::OutOfBounds { allocation: address, size: 16 })
    );
    assert!(memory.unregister(host.as_mut_ptr()));
    assert!(!memory.unregister(host.as_mut_ptr()));
    assert!(!memory.owns(address));
}

#[test]
fn bytes_never_written_are_told_only_if_watched() {
    let memory = Memory::watching_writes();
    let start = memory.allocate(64);
    assert_eq!(memory.unwritten(start, 4), Some(start));
    memory.mark_written(start + 3, 10);
    assert_eq!(memory.unwritten(start + 3, 10), None);
    assert_eq!(memory.unwritten(start + 2, 4), Some(start + 2));
    assert_eq!(memory.unwritten(start + 8, 8), Some(start + 13));
    memory.mark_written(start, 64);
    assert_eq!(memory.unwritten(start, 64), None);
    memory.free(start).expect("live");
    memory.ranges.lock().expect("not poisoned").cursor = 0;
    assert_eq!(memory.allocate(64), start);
    assert_eq!(memory.unwritten(start + 5, 1), Some(start + 5));

    let memory = Memory::new();
    assert_eq!(memory.unwritten(memory.allocate(4), 4), None);
}

#[test]
fn threads_resolve_while_others_allocate_and_free() {
    let memory = Memory::new();
    let shared = memory.allocate(4096);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for size in 1..2000 {
                    let start = memory.allocate(size * 100);
                    assert!(memory.resolve(start, size * 100).is_ok());
                    memory.free(start).expect("live");
                    assert!(matches!(memory.resolve(start, 1), Err(AccessError::Freed { .. })));
                }
            });
            scope.spawn(|| {
                for offset in 0..100_000 {
                    assert!(memory.resolve(shared + offset % 4096, 1).is_ok());
                }
            });
        }
    });
    assert_eq!(memory.used(), 4096);
}
