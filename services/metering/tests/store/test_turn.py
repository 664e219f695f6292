"""Reserve and settle on real servers."""

from decimal import Decimal

from metering_rig import Rig, call


async def test_a_reserved_call_is_settled_once_and_everyone_is_told(rig: Rig) -> None:
    await rig.open_account("did:a", "10")
    reserved = call(hold="1")

    assert await rig.reserve_batch(reserved) == ["reserved"]
    assert (await rig.account("did:a"))["held"] == 1
    await rig.publish(rig.completed(reserved))
    await rig.until_settled(reserved)

    row = await rig.row(reserved.call_id)
    assert (row["state"], row["credits"], row["outcome"], row["attempts"]) == ("success", Decimal("0.2"), "stop", 1)
    assert rig.settled[reserved.call_id][0].credits == "0.2000000000"
    await rig.assert_balanced()
