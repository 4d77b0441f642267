//! The global allocator that wipes: no block goes back to the heap with what was in it.
//!
//! `secrecy` and `zeroize` wipe the buffers that we name; this wipes the ones we cannot name: a form body inside an
//! HTTP client, a line inside a TOML parser, a vector that grew. It never sees memory that does not come from the heap:
//! stacks, registers, and C libraries, which call malloc(3) themselves.
//!
//! Cost: one memset of every freed block, and every resize moves the block (see [`WipingAllocator::realloc`]); so a
//! block of many MiB loses mremap(2)'s growth without copying, and pages of it that were never touched are touched
//! once. The agent's blocks are KiB, where both disappear beside malloc itself.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// An allocator that hands every request to `A`, and gives no block back to it before the block is zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct WipingAllocator<A = System>(A);

impl<A> WipingAllocator<A> {
    /// Wipes what goes back to `inner`.
    pub const fn new(inner: A) -> Self {
        Self(inner)
    }
}

thread_local! {
    /// Never dropped, so that an allocation while a thread ends finds it.
    static HELD: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

/// Bytes that this thread has allocated since its start, less those that it has freed, whoever allocated them: what a piece
/// of work on one thread holds is the difference of two calls. Zero where another allocator is the global one.
pub fn held() -> i64 {
    HELD.get()
}

/// The most that [`held`] has been since this was asked last.
pub fn most_held() -> i64 {
    MOST.replace(HELD.get())
}

/// Gives pages that are free back to the kernel: malloc(3) keeps what lies below a block that is still used, which after a
/// crowd can be nearly all of it.
#[allow(unsafe_code, reason = "a foreign call")]
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number; malloc_trim(3) is MT-Safe.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Wipes a buffer that stays allocated, as a block is wiped when it is freed.
#[allow(unsafe_code, reason = "a foreign call on raw memory")]
pub fn erase(bytes: &mut [u8]) {
    // SAFETY: the reference is to so many bytes that may be written.
    unsafe { wipe(bytes.as_mut_ptr(), bytes.len()) };
}

/// The size of a block is at most isize::MAX.
fn hold(bytes: usize) {
    let held = HELD.get().wrapping_add(bytes as i64);
    HELD.set(held);
    if held > MOST.get() {
        MOST.set(held);
    }
}

fn release(bytes: usize) {
    HELD.set(HELD.get().wrapping_sub(bytes as i64));
}

#[expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; each method keeps the contract it is called under"
)]
// SAFETY: every block comes from `A` and goes back to `A` with the layout that it was made with; between the two it is
// only written by its owner, or by `wipe` once its owner has given it up.
unsafe impl<A: GlobalAlloc> GlobalAlloc for WipingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        // SAFETY: the caller's promise about `layout` is the one that `A` asks for.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        // SAFETY: as in `alloc`. Passed on, because fresh pages are zero already and `A` knows which are fresh.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        release(layout.size());
        // SAFETY: the caller gives up `block`, which has `layout.size()` bytes, and made it with this `layout`.
        unsafe {
            wipe(block, layout.size());
            self.0.dealloc(block, layout);
        }
    }

    /// Always alloc, copy, wipe, free; a shrink too. `A::realloc` may free the old block itself, with its content (a
    /// growing heap block in glibc; a shrinking one in musl), and does not say whether it did.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `new_size` is not zero and, rounded up to `layout.align()`, fits an isize.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: `new_layout` is valid and not empty, as above.
        let moved = unsafe { self.0.alloc(new_layout) };
        if moved.is_null() {
            // The old block is untouched and still the caller's: the contract for a realloc that fails.
            return moved;
        }
        hold(new_size);
        release(layout.size());
        // SAFETY: both blocks are live, distinct, and at least the smaller size long; the old one is given up here, with
        // the layout that it was made with.
        unsafe {
            std::ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
            wipe(block, layout.size());
            self.0.dealloc(block, layout);
        }
        moved
    }
}

/// memset at its full speed that no optimiser may drop, though the next thing that happens to the block is its free:
/// explicit_bzero(3) promises that (glibc 2.25, musl 1.1.20).
///
/// # Safety
/// `block` must be valid for writes of `size` bytes.
#[expect(unsafe_code, reason = "a foreign call on raw memory")]
unsafe fn wipe(block: *mut u8, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::explicit_bzero(block.cast(), size) };
}

#[cfg(test)]
#[expect(unsafe_code, reason = "an allocator is tested by its own, unsafe, methods")]
mod tests {
    use std::{cell::RefCell, ptr};

    use super::*;

    /// Gives no block back to the system before it is dropped, so that a test may look at a block after its free.
    #[derive(Default)]
    struct Morgue {
        freed: RefCell<Vec<(*mut u8, Layout)>>,
        refuses: std::cell::Cell<bool>,
    }

    // SAFETY: System's blocks, each freed once, when the morgue is dropped.
    unsafe impl GlobalAlloc for Morgue {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise is System's.
            if self.refuses.get() { ptr::null_mut() } else { unsafe { System.alloc(layout) } }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            self.freed.borrow_mut().push((block, layout));
        }
    }

    impl Morgue {
        fn bodies(&self) -> Vec<Vec<u8>> {
            let freed = self.freed.borrow();
            // SAFETY: the blocks are still allocated in System, and initialised to their end by the tests.
            freed.iter().map(|(b, l)| unsafe { std::slice::from_raw_parts(*b, l.size()) }.to_vec()).collect()
        }
    }

    impl Drop for Morgue {
        fn drop(&mut self) {
            for (block, layout) in self.freed.take() {
                // SAFETY: made by System with this layout, and freed nowhere else.
                unsafe { System.dealloc(block, layout) };
            }
        }
    }

    fn filled(allocator: &WipingAllocator<Morgue>, layout: Layout) -> *mut u8 {
        // SAFETY: a layout with a size; the block is written within it.
        unsafe {
            let block = allocator.alloc(layout);
            assert!(!block.is_null());
            for i in 0..layout.size() {
                block.add(i).write((i % 251) as u8 + 1);
            }
            block
        }
    }

    const SIZES: [usize; 6] = [1, 7, 64, 4096, 65_537, 1 << 20];

    #[test]
    fn a_freed_block_is_zero_to_its_last_byte() {
        for size in SIZES {
            let allocator = WipingAllocator::new(Morgue::default());
            let layout = Layout::from_size_align(size, 16).unwrap();
            let block = filled(&allocator, layout);
            assert!(allocator.0.bodies().is_empty());
            // SAFETY: made by this allocator with this layout.
            unsafe { allocator.dealloc(block, layout) };
            assert_eq!(allocator.0.bodies(), [vec![0; size]]);
        }
    }

    #[test]
    fn a_resize_moves_the_content_and_leaves_no_copy_behind() {
        for (old, new) in [(1, 2), (64, 4096), (4096, 64), (65_537, 1 << 20), (1 << 20, 3), (9, 9)] {
            let allocator = WipingAllocator::new(Morgue::default());
            let layout = Layout::from_size_align(old, 8).unwrap();
            let block = filled(&allocator, layout);
            // SAFETY: made by this allocator with this layout; the result is read within its size, and freed once.
            unsafe {
                let moved = allocator.realloc(block, layout, new);
                let kept = std::slice::from_raw_parts(moved, old.min(new));
                assert!(kept.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8 + 1), "{old} to {new}");
                assert_eq!(allocator.0.bodies(), [vec![0; old]], "{old} to {new}");
                System.dealloc(moved, Layout::from_size_align(new, 8).unwrap());
            }
        }
    }

    #[test]
    fn a_resize_that_fails_leaves_the_block_as_it_was() {
        let allocator = WipingAllocator::new(Morgue::default());
        let layout = Layout::from_size_align(32, 8).unwrap();
        let block = filled(&allocator, layout);
        allocator.0.refuses.set(true);
        // SAFETY: as above.
        unsafe {
            assert!(allocator.realloc(block, layout, 64).is_null());
            assert_eq!(block.read(), 1);
            assert!(allocator.0.bodies().is_empty());
            allocator.dealloc(block, layout);
        }
    }

    #[test]
    fn zeroed_blocks_and_large_alignments_pass_through() {
        let allocator = WipingAllocator::<System>::default();
        let layout = Layout::from_size_align(100, 4096).unwrap();
        // SAFETY: made and freed with one layout, read within it.
        unsafe {
            let block = allocator.alloc_zeroed(layout);
            assert_eq!(block.align_offset(4096), 0);
            assert_eq!(std::slice::from_raw_parts(block, 100), [0; 100]);
            block.write(7);
            let moved = allocator.realloc(block, layout, 9000);
            assert_eq!((moved.align_offset(4096), moved.read()), (0, 7));
            allocator.dealloc(moved, Layout::from_size_align(9000, 4096).unwrap());
        }
    }
}
