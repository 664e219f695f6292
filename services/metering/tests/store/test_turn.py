"""Reserve and settle on real servers."""

from decimal import Decimal

from neighbours import Neighbours, call


async def test_a_reserved_call_is_settled_once_and_everyone_is_told(hub: Neighbours) -> None:
    await hub.open_account("did:a", "10")
    reserved = call(hold="1")

    assert await hub.reserve_batch(reserved) == ["reserved"]
    assert (await hub.account("did:a"))["held"] == 1
    await hub.publish(hub.completed(reserved))
    await hub.until_settled(reserved)

    row = await hub.row(reserved.call_id)
    assert (row["state"], row["credits"], row["outcome"], row["attempts"]) == ("success", Decimal("0.2"), "stop", 1)
    assert hub.settled[reserved.call_id][0].credits == "0.2000000000"
    await hub.assert_balanced()
