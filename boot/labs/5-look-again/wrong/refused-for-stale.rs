//= part: look again
//= loses: a reference that is not kept is given back
    #[inline(always)]
    pub(super) fn take_and_recheck<const AT_ONCE: bool>(
        &self,
        page: &Page,
        nr: u32,
        entries: impl Recheck,
        above: Option<Seen<'_>>,
    ) -> Taken {
        let machine = &self.mm().machine;
        machine.reached(Point::GupLeafRead);
        let taken = if AT_ONCE { page.try_take_at_once::<PIN>(nr) } else { self.take(page, nr).is_ok() };
        if !taken {
            return Taken::Refused;
        }
        machine.reached(Point::GupPinned);
        let unchanged =
            entries.are_unchanged::<AT_ONCE>() && above.is_none_or(|above| above.still_leads_there::<AT_ONCE>());
        if unchanged { Taken::Kept } else { Taken::Refused }
    }
